"""The page to draw on, in a real browser, against PyTorch and ``utils.handwriting``."""

import base64
import os
import re
import sys

import filelock
import numpy as np
import pytest
import torch
from pictures import CHROMIUM, MNIST, USPS, drawn, in_scenes, row_of
from PIL import Image

from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.results import results
from utils.errors import RunError
from utils.handwriting import UnreadableImage, prepare_image
from utils.records.checkpoint import load_checkpoint
from utils.records.files import ROOT

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: apt install chromium)"),
]


@pytest.fixture(scope="session")
def page_file(tmp_path_factory):
    """Make the page once, with the real test images that are at hand."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    path = shared / "try.html"
    with filelock.FileLock(shared / "try.lock"):
        if not path.exists():
            sys.path.append(str(ROOT / "docs"))
            import drawing

            path.write_text(drawing.page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, page_file):
    """Open the page; at the end it must have asked no other host, and complained of nothing."""
    contexts, complaints, requests = [], [], []

    def open_page(**settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        sync_api.expect(page.locator("#status")).to_have_text("Draw a digit.")
        return page

    yield open_page
    for context in contexts:
        context.close()
    others = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert complaints == others == []


def floats(array):
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


FLOATS = "text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)"


def test_logits_are_those_of_pytorch(open_page, page_file):
    assert page_file.stat().st_size < 3e6
    page = open_page()
    networks = page.evaluate("DATA.networks.map(({name, recipe}) => [name, recipe])")
    published = {(who, each.recipe): each.name for who, own in results().items() for each in own}
    assert {name for name, _ in networks} == {person.model_name for person in PEOPLE.values()}
    for index, (model_name, recipe) in enumerate(networks):
        username = next(who for who, each in PEOPLE.items() if each.model_name == model_name)
        name = published[username, recipe]
        path = ROOT / "weights" / model_name / f"{name}_checkpoint_best.pt"
        dataset = PEOPLE[username].dataset
        try:
            images, _ = open_split(dataset, train=False)[:300]
        except RunError:  # USPS cannot be fetched everywhere
            images = torch.rand(300, 1, *DATASETS[dataset].image_size)
        model, _ = build_model(username, dataset, load_checkpoint(path))
        with torch.inference_mode():
            expected = model(images).numpy()
        found = page.evaluate(
            f"""([text, size, index]) => {{
                const all = ({FLOATS})(text), rows = [];
                for (let k = 0; k < all.length; k += size)
                    rows.push(Array.from(forward(DATA.networks[index], all.subarray(k, k + size))));
                return rows;
            }}""",
            [floats(images), images[0].numel(), index],
        )
        assert np.abs(np.array(found) - expected).max() < 1e-4, (model_name, recipe)


PICTURES = {
    **{
        f"{digit} in {font}": drawn(digit, font)
        for digit in range(10)
        for font in ("DejaVuSerif-Italic", "cmr10")
    },
    "small on a wide page": drawn(4, "DejaVuSans", 150, (1200, 200), (1400, 400)),
    "large": drawn(7, "DejaVuSans", 700, (600, 700), (1300, 1500)),
    "tiny": drawn(4, "DejaVuSans", 12, (6, 6), (12, 12)),
    "edge to edge": drawn(7)[120:280, 100:300],
    **in_scenes(5),
    **in_scenes(8),
    **{digits: row_of(digits) for digits in ("10", "4711", "98765", "20260704")},
    "touching": np.minimum(drawn(6, at=(150, 200)), drawn(6, at=(246, 200))),
    "a small digit beside": np.minimum(drawn(5, at=(150, 200)), drawn(6, size=80, at=(250, 230))),
    "below each other": np.minimum(
        drawn(3, at=(200, 90), size=120), drawn(7, at=(200, 310), size=120)
    ),
    "blank": np.ones((300, 300)),
    "a line": np.pad(np.zeros((8, 300)), 50, constant_values=1),
}


def test_pictures_are_prepared_as_by_handwriting(open_page):
    page = open_page()
    forms = {name: page.evaluate(f"DATA.datasets.{name}") for name in ("mnist_4_9", "usps_0_6")}
    compared = 0
    for name, gray in PICTURES.items():
        found = page.evaluate(
            f"""([text, width, height, forms]) => {{
                try {{
                    const digits = readDigits(makeImage(width, height, ({FLOATS})(text)));
                    return digits.map(({{box, ink}}) => [
                        [box.left, box.top, box.right, box.bottom],
                        ...forms.map((form) => Array.from(prepare(ink, form).data))]);
                }} catch (error) {{ return error.message; }}
            }}""",
            [floats(gray), gray.shape[1], gray.shape[0], list(forms.values())],
        )
        if isinstance(found, str):
            with pytest.raises(UnreadableImage, match=re.escape(found)):
                prepare_image(gray.astype(np.float32), MNIST)
            continue
        expected = [prepare_image(gray.astype(np.float32), form) for form in (MNIST, USPS)]
        assert len(found) == len(expected[0][0]), name
        for k, (box, *images) in enumerate(found):
            assert box == pytest.approx(expected[0][1][k], abs=1e-6), name
            for image, (own, _) in zip(images, expected, strict=True):
                assert np.abs(np.array(image) - own[k].ravel()).max() <= 2 / 255, name
                compared += 1
    assert compared > 2 * 50


def stroke(page, *points):
    box = page.locator("#paper").bounding_box()
    scale = box["width"] / 400
    places = [(box["x"] + scale * x, box["y"] + scale * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


SEVEN = ((120, 100), (260, 100), (180, 320))
ONE = ((200, 80), (200, 320))


def says(page, text):
    """Expect the page's answer, which comes a moment after the last stroke."""
    sync_api.expect(page.locator("#status")).to_contain_text(text)


def test_strokes_of_the_mouse_give_the_digit(open_page):
    page = open_page()
    stroke(page, *SEVEN)
    says(page, "7 (of 4 to 9): SMLP distilled, SMLP tuned")
    cards = page.locator("article").all_inner_texts()
    assert len(cards) == page.evaluate("DATA.networks.length")
    assert any("not sure: perhaps none of these" in card for card in cards)  # DMLP has no 7
    assert any("knows no 0, 1, 2, 3" in card for card in cards)
    bars = page.locator("article").first.locator(".bar").all_inner_texts()
    shares = [bar.split("\n")[-1] for bar in bars]
    assert "> 99.9 %" in shares and "< 0.1 %" in shares and "0.0 %" not in shares
    assert page.locator("#seen canvas").count() == 2
    page.get_by_role("button", name="Undo").click()
    says(page, "Draw a digit.")
    assert page.locator("#seen canvas").count() == 0
    page.locator("#pen").fill("6")
    stroke(page, *SEVEN)
    says(page, "7 (of 4 to 9): ")
    page.get_by_role("button", name="Clear").click()
    says(page, "Draw a digit.")
    page.get_by_role("button", name="Undo").click()
    says(page, "7 (of 4 to 9): ")


#: Points of strokes, of digits as people write them.
STROKES = {
    0: [
        [
            (200, 90),
            (140, 130),
            (120, 210),
            (150, 300),
            (210, 320),
            (260, 270),
            (270, 180),
            (240, 110),
            (200, 90),
        ]
    ],
    1: [[(200, 80), (200, 320)]],
    2: [
        [
            (130, 140),
            (160, 95),
            (220, 90),
            (255, 130),
            (240, 190),
            (180, 260),
            (125, 315),
            (275, 315),
        ]
    ],
    3: [
        [
            (130, 100),
            (200, 85),
            (250, 120),
            (235, 175),
            (180, 195),
            (245, 220),
            (260, 280),
            (200, 320),
            (130, 305),
        ]
    ],
    4: [[(150, 90), (130, 220), (270, 220)], [(240, 90), (235, 320)]],
    5: [
        [
            (260, 90),
            (150, 90),
            (140, 190),
            (210, 185),
            (260, 230),
            (250, 295),
            (190, 320),
            (130, 300),
        ]
    ],
    6: [
        [
            (230, 80),
            (160, 150),
            (130, 250),
            (160, 315),
            (230, 310),
            (255, 250),
            (215, 210),
            (150, 240),
        ]
    ],
    7: [[(120, 100), (260, 100), (180, 320)]],
    8: [
        [
            (200, 195),
            (140, 150),
            (155, 95),
            (215, 85),
            (255, 125),
            (200, 195),
            (140, 250),
            (150, 310),
            (215, 320),
            (260, 270),
            (200, 195),
        ]
    ],
    9: [
        [
            (250, 130),
            (200, 90),
            (145, 130),
            (165, 190),
            (230, 185),
            (255, 130),
            (245, 230),
            (225, 320),
        ]
    ],
}


@pytest.mark.parametrize("digit", STROKES)
def test_every_digit_is_read(open_page, digit):
    """One of the networks that know it is sure of it, and none that knows it is sure of another."""
    page = open_page()
    for points in STROKES[digit]:
        stroke(page, *points)
    sync_api.expect(page.locator("#status")).not_to_have_text("Draw a digit.")
    answers = page.locator("article h3").all_inner_texts()
    known = page.evaluate("DATA.networks.map((network) => network.classes)")
    read = [each.split()[-1] for each, own in zip(answers, known, strict=True) if str(digit) in own]
    assert str(digit) in read and {each for each in read if "?" not in each} == {str(digit)}


def test_odd_orders_of_events(open_page):
    """Undo while a stroke is drawn, keys after it, a second finger, and the edge of the paper."""
    page = open_page()
    box = page.locator("#paper").bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    page.mouse.down()
    page.keyboard.press("Control+z")
    page.mouse.move(box["x"] + 190, box["y"] + 190)
    page.mouse.up()
    page.locator("#paper").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    page.keyboard.press("ArrowUp")
    says(page, "Draw a digit.")
    second = "new PointerEvent('pointerdown', {isPrimary: false, pointerId: 7, bubbles: true})"
    page.locator("#paper").evaluate(f"paper => paper.dispatchEvent({second})")
    assert page.evaluate("strokes.length") == 0
    stroke(page, (390, 60), (390, 340))
    sync_api.expect(page.locator("#seen canvas")).to_have_count(2)


def test_a_row_is_read_digit_by_digit(open_page):
    page = open_page()
    stroke(page, (40, 120), (120, 120), (70, 260))
    stroke(page, (200, 120), (200, 260))
    stroke(page, (280, 120), (360, 120), (310, 260))
    sync_api.expect(page.locator("#digits button")).to_have_count(3)
    rows = page.locator("article h3 b").all_inner_texts()
    assert any(
        re.fullmatch(r"7\?? \d\?? 7\??", row) and "?" in row for row in rows
    )  # SMLP knows no 1
    first = page.locator("#seen canvas").first.evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("button", name="digit 2").click()
    second = page.locator("#seen canvas").first.evaluate("canvas => canvas.toDataURL()")
    assert first != second
    pressed = page.locator("#digits button[aria-pressed=true]").all_inner_texts()
    assert pressed == ["digit 2"]
    assert page.evaluate("document.activeElement.textContent") == "digit 2"


def test_the_keyboard_draws(open_page):
    page = open_page()
    page.locator("#paper").focus()
    for key, times in (("ArrowLeft", 7), ("ArrowUp", 10), ("Space", 1), ("ArrowRight", 14)):
        for _ in range(times):
            page.keyboard.press(key)
    for _ in range(8):
        for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
    page.keyboard.press("Space")
    says(page, "7 (of 4 to 9): ")
    page.keyboard.press("Control+z")
    says(page, "Draw a digit.")


def test_fingers_draw_on_a_narrow_page(open_page):
    page = open_page(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#paper").bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", SEVEN[:1]),
        *(("touchMove", [point]) for point in ((190, 100), SEVEN[1], (220, 210), SEVEN[2])),
        ("touchEnd", ()),
    ):
        scale = box["width"] / 400
        places = [{"x": box["x"] + scale * x, "y": box["y"] + scale * y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    sync_api.expect(page.locator("#status")).to_contain_text("7 (of 4 to 9): ")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(23, 23, 26)"


def test_pictures_from_files(open_page, tmp_path):
    page = open_page()

    def give(path):
        page.locator("#file").set_input_files(path)
        sync_api.expect(page.locator("#status")).not_to_have_text("Reading the picture …")
        return page.locator("#status").inner_text()

    Image.fromarray((255 * row_of("4579")).astype(np.uint8)).save(tmp_path / "row.png")
    assert "4 5 7 9 (of 4 to 9): " in give(tmp_path / "row.png")
    white = np.full((400, 400, 4), 255, np.uint8)
    white[..., 3] = (255 * (1 - drawn(7))).astype(np.uint8)
    Image.fromarray(white).save(tmp_path / "white_ink.png")
    assert "7 (of 4 to 9): " in give(tmp_path / "white_ink.png")
    (tmp_path / "none.png").write_text("hello")
    assert give(tmp_path / "none.png").startswith("none.png is no picture that this browser reads")
    Image.new("L", (300, 200), 200).save(tmp_path / "blank.png")
    assert give(tmp_path / "blank.png") == "Nothing stands out from the background."
    photo = Image.new("L", (7300, 5500), 235)  # 40 megapixels
    photo.paste(
        Image.fromarray((235 * drawn(5)).astype(np.uint8)).resize((1600, 1600)), (2500, 1500)
    )
    photo.save(tmp_path / "photo.jpg", quality=80)
    page.evaluate("setInterval(() => { self.ticks = (self.ticks ?? 0) + 1; }, 50)")
    assert "5 (of 4 to 9): " in give(tmp_path / "photo.jpg")
    page.get_by_role("button", name="Undo").click()
    says(page, "Nothing stands out from the background.")


def test_test_images_are_read_as_they_are(open_page):
    """A network's known error is shown as the error that its evaluation counted."""
    page = open_page()
    page.locator("summary").click()
    buttons = page.locator("#samples button")
    sync_api.expect(buttons.first).to_be_visible()
    labels = [each.get_attribute("aria-label") for each in buttons.all()]
    assert len(labels) > 3 * 12
    index = next(k for k, label in enumerate(labels) if "by SMLP standard" in label)
    taken = labels[index].split("in its evaluation ")[1]
    digit = next(part[0] for part in taken.split("; ") if "SMLP standard" in part)
    buttons.nth(index).click()
    says(page, "Test image: ")
    card = page.locator("article", has_text="SMLP standard")
    assert card.locator("h3 b").inner_text().rstrip("?") == digit


def test_the_page_is_usable_without_seeing_it(open_page):
    page = open_page()
    names = page.evaluate(
        """[...document.querySelectorAll("button, input, canvas[tabindex], summary")].map(
            (each) => each.ariaLabel || each.textContent || each.closest("label")?.textContent)"""
    )
    assert all(name and name.strip() for name in names)
    assert page.locator("[role=status]").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    stroke(page, *ONE)
    headings = page.locator("h1, h2, h3").evaluate_all("all => all.map((each) => each.tagName)")
    assert headings[0] == "H1" and "H3" not in headings[: headings.index("H2")]
