"""Pictures of digits: found, prepared as the data were made, and predicted by published weights."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont

from DJSW import predict
from DJSW.pipelines import DATASETS, PEOPLE, build_model, open_split
from utils.checkpoint import load_checkpoint
from utils.digit_images import NotADigit, as_given, as_trained, read_image
from utils.files import ROOT

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
    "cmtt10",
)
MNIST, USPS = DATASETS["mnist_4_9"], DATASETS["usps_0_6"]
WEIGHTS = {
    name: f"weights/{p.model_name}/{p.model_name.lower()}_standard_checkpoint_best.pt"
    for name, p in PEOPLE.items()
}


def drawn(digit, font="DejaVuSans", size=200, at=(200, 200), canvas=(400, 400)):
    """Black on white, gray values 0 to 1; the fonts come with matplotlib."""
    image = Image.new("L", canvas, 255)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    ImageDraw.Draw(image).text(
        at, str(digit), fill=0, font=ImageFont.truetype(str(path), size), anchor="mm"
    )
    return np.asarray(image, dtype=np.float32) / 255


def noisy(gray, spread=0.1):
    noise = np.random.default_rng(0).normal(0, spread, gray.shape)
    return (gray + noise).clip(0, 1).astype(np.float32)


def in_shadow(gray):
    """Gray paper in light that halves from one corner to the other."""
    height, width = gray.shape
    y, x = np.mgrid[:height, :width]
    light = 1 - 0.25 * x / width - 0.25 * y / height
    return ((0.1 + 0.7 * gray) * light).astype(np.float32)


CONDITIONS = {
    "black on white": drawn,
    "white on black": lambda *a: 1 - drawn(*a),
    "in a corner": lambda *a: drawn(*a, 100, (320, 80)),
    "noise": lambda *a: noisy(drawn(*a)),
    "white, noise, corner": lambda *a: noisy(1 - drawn(*a, 120, (90, 310)), 0.15),
    "in shadow": lambda *a: noisy(in_shadow(drawn(*a)), 0.03),
    "on a wide page": lambda *a: drawn(*a, 150, (1200, 200), (1400, 400)),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_same_digit_is_seen_however_it_is_pictured(condition):
    plain = {digit: as_trained(drawn(digit), MNIST) for digit in range(4, 10)}
    for digit in (4, 8):
        seen = as_trained(CONDITIONS[condition](digit, "DejaVuSans"), MNIST)
        # Its width and its centre may be rounded to the next pixel.
        shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        away = {
            other: min(np.abs(np.roll(seen, shift, (0, 1)) - image).mean() for shift in shifts)
            for other, image in plain.items()
        }
        own = away.pop(digit)
        assert own < 0.04 and own < min(away.values()) / 1.8


def framed(gray):
    """In the black frame of a scan."""
    gray = gray.copy()
    gray[:7] = gray[-7:] = gray[:, :7] = gray[:, -7:] = 0
    return gray


def on_a_table(gray):
    """A page on a dark table, whose edge is in the picture."""
    gray = gray.copy()
    gray[:, :60] = 0.15
    return gray


def blotted(gray):
    gray = gray.copy()
    gray[300:340, 20:60] = 0
    return gray


@pytest.mark.parametrize("scene", [framed, on_a_table, lambda gray: framed(1 - gray)])
def test_what_is_at_the_edge_is_no_ink(scene):
    plain = as_trained(drawn(5), MNIST)
    assert np.abs(as_trained(scene(drawn(5)), MNIST) - plain).mean() < 0.005


def test_ink_that_reaches_the_edge_is_ink():
    plain = as_trained(drawn(7), MNIST)
    rows, columns = np.nonzero(drawn(7) < 0.5)
    touching = drawn(7)[rows.min() : rows.max() + 1, columns.min() - 40 : columns.max() + 40]
    assert np.abs(as_trained(touching, MNIST) - plain).mean() < 0.02


@pytest.mark.parametrize(
    "gray",
    [
        np.minimum(drawn(3, at=(120, 200)), drawn(7, at=(290, 200))),
        np.minimum(drawn(3, at=(200, 90), size=120), drawn(7, at=(200, 310), size=120)),
        blotted(drawn(1)),
    ],
    ids=["beside", "below", "blot"],
)
def test_several_things_are_refused(gray):
    with pytest.raises(NotADigit, match="several things stand out, apart from each other"):
        as_trained(gray, MNIST)


def test_a_thin_pencil_on_a_large_photo(tmp_path):
    """Eight pixels of 4000, gray on gray."""
    image = Image.new("L", (3000, 4000), 240)
    ImageDraw.Draw(image).line([(1000, 1000), (2000, 1000), (1400, 3000)], fill=120, width=8)
    noise = np.random.default_rng(0).normal(0, 6, (4000, 3000))
    Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(
        tmp_path / "photo.jpg", quality=80
    )
    seen = as_trained(read_image(tmp_path / "photo.jpg"), MNIST)
    bold = Image.new("L", (3000, 4000), 240)
    ImageDraw.Draw(bold).line([(1000, 1000), (2000, 1000), (1400, 3000)], fill=0, width=200)
    plain = as_trained(np.asarray(bold, dtype=np.float32) / 255, MNIST)
    assert np.abs(seen - plain).mean() < 0.03


def test_faint_ink_is_seen():
    plain = as_trained(drawn(6), MNIST)
    for contrast in (0.15, 0.3):
        faint = noisy(0.8 - contrast * (1 - drawn(6)), 0.02)
        assert np.abs(as_trained(faint, MNIST) - plain).mean() < 0.015


#: Of 10 fonts; the networks learned handwriting, where a printed 1 has no foot and a 4 is open.
RIGHT = {"sigurd": 52 / 60, "waly": 50 / 70, "dennis": 38 / 40}


@pytest.mark.parametrize("username", PEOPLE)
def test_rendered_digits_are_recognised(username):
    if username not in RIGHT:
        pytest.skip("no published weights")
    entry = DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(
        username, PEOPLE[username].dataset, load_checkpoint(ROOT / WEIGHTS[username])
    )
    for condition in ("black on white", "white, noise, corner", "in shadow"):
        pictured = [
            as_trained(CONDITIONS[condition](digit, font), entry)
            for digit in entry.digits
            for font in FONTS
        ]
        with torch.inference_mode():
            columns = model(torch.from_numpy(np.array(pictured))[:, None]).argmax(1)
        right = columns == torch.arange(len(entry.digits)).repeat_interleave(len(FONTS))
        assert right.float().mean() >= RIGHT[username], condition


def test_form_is_that_of_the_data():
    for font in FONTS:
        for digit in range(10):
            image = as_trained(drawn(digit, font), MNIST)
            assert image.shape == (28, 28) and image.dtype == np.float32
            assert image.min() == 0 and image.max() == 1
            rows, columns = np.nonzero(image > 0.3)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
            y, x = np.average(np.indices((28, 28)), axis=(1, 2), weights=np.stack([image] * 2))
            # whole pixels, unless a tail would leave the frame
            assert abs(x - 14) <= 0.51 and (abs(y - 14) <= 0.51 or image[[0, -1]].any())
            image = as_trained(drawn(digit, font), USPS)
            rows, columns = np.nonzero(image > 0.3)
            assert image.shape == (16, 16) and max(np.ptp(rows), np.ptp(columns)) + 1 >= 15
            assert abs(columns.min() - (15 - columns.max())) <= 2


def test_thin_strokes_are_thickened():
    image = Image.new("L", (1000, 1000), 255)
    ImageDraw.Draw(image).line([(300, 200), (700, 200), (450, 850)], fill=0, width=5)
    seen = as_trained(np.asarray(image, dtype=np.float32) / 255, MNIST)
    # five pixels of 650 would be 0.15 of the 20
    widths = (seen[12:20] > 0.4).sum(1)
    assert widths.min() >= 2 and widths.max() <= 4


def test_specks_and_grain_are_no_ink():
    gray = drawn(7)
    gray[20:26, 20:26] = 0  # dust
    gray[390, 5:9] = 0
    plain = as_trained(drawn(7), MNIST)
    assert np.abs(as_trained(gray, MNIST) - plain).mean() < 0.005


@pytest.mark.parametrize("gray", [np.ones((50, 50)), np.full((9, 400), 0.3), np.zeros((1, 1))])
def test_nothing_to_see(gray):
    with pytest.raises(NotADigit, match="nothing in it stands out"):
        as_trained(gray.astype(np.float32), MNIST)
    with pytest.raises(NotADigit, match="nothing in it stands out"):
        as_trained(noisy(0.9 * gray.astype(np.float32), 0.02), MNIST)


def test_tiny_and_odd_shapes():
    for canvas in ((12, 12), (40, 400), (3000, 60)):
        gray = drawn(4, "DejaVuSans", min(canvas), (canvas[0] // 2, canvas[1] // 2), canvas)
        assert as_trained(gray, MNIST).shape == (28, 28)


def files(folder):
    """A digit in every way that a file may hold it."""
    gray = (255 * drawn(4, "DejaVuSansMono")).astype(np.uint8)
    image = Image.fromarray(gray)
    image.save(folder / "gray.png")
    image.convert("RGB").save(folder / "colour.jpg")
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("1").save(folder / "bilevel.png")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "16bit.png")
    ink = np.zeros((400, 400, 4), np.uint8)
    ink[..., 3] = 255 - gray
    Image.fromarray(ink).save(folder / "black_ink.png")
    ink[..., :3] = 255
    Image.fromarray(ink).save(folder / "white_ink.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to the right
    turned.convert("RGB").save(folder / "photo.jpg", exif=exif)
    image.resize((4000, 4000)).convert("RGB").save(folder / "large.jpg")
    Image.fromarray((gray // 16).astype(np.uint16) * 273).save(folder / "12bit.png")
    Image.fromarray(gray.astype(np.int32)).save(folder / "32bit.tif")
    Image.fromarray(gray.astype(np.float32) / 255).save(folder / "fractions.tif")
    green = np.full((400, 400, 3), (190, 70, 70), np.uint8)
    green[gray < 128] = (60, 150, 60)  # about as dark
    Image.fromarray(green).save(folder / "green_on_red.png")
    red = np.full((400, 400, 3), (250, 240, 220), np.uint8)
    red[gray < 128] = (160, 20, 30)
    Image.fromarray(red).save(folder / "red.png")


def test_every_kind_of_file_shows_the_same(tmp_path):
    files(tmp_path)
    plain = as_trained(drawn(4, "DejaVuSansMono"), MNIST)
    found = sorted(tmp_path.iterdir())
    assert len(found) == 15
    for path in found:
        assert np.abs(as_trained(read_image(path), MNIST) - plain).mean() < 0.006, path


@pytest.fixture
def call(tmp_path, capsys):
    (tmp_path / "out").mkdir()

    def call(*arguments, username="sigurd"):
        flags = ["--load_checkpoint", WEIGHTS[username], "--output_dir", tmp_path / "out"]
        status = predict.main(list(map(str, [*arguments, *flags])))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    call.out = tmp_path / "out"
    return call


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_folder_with_what_is_no_image(call, tmp_path):
    folder = tmp_path / "my digits"
    (folder / "below").mkdir(parents=True)
    files(folder)
    (folder / "gray.png").rename(folder / "below" / "gray.png")
    (folder / ".hidden").write_text("x")
    (folder / "notes.txt").write_text("x")
    (folder / "text.png").write_text("hello")
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    (folder / "nothing.png").touch()
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    frames = [Image.new("L", (90, 90), shade) for shade in (0, 99)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nan.tif")
    Image.new("L", (90, 90), 200).save(folder / "blank.png")
    status, out, err = call(folder, "--exp_name", "mine")
    assert status == 2
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    named = {Path(line.split(": ")[1]).name for line in skipped}
    assert named == {
        "notes.txt",
        "text.png",
        "cut.jpg",
        "nothing.png",
        "blank.png",
        "gone.png",
        "film.gif",
        "nan.tif",
    }
    assert err.splitlines()[-1] == "error: 8 of 23 files were skipped, see above"
    assert len(err.splitlines()) == 9
    assert "gone.png: No such file or directory" in err
    assert "film.gif: several images in one file; give one a file" in err
    rows = table(call.out / "mine_predicted.csv")
    assert [row["predicted"] for row in rows] == ["4"] * 15
    assert list(rows[0])[2:] == [f"p_{digit}" for digit in range(4, 10)]
    for row in rows:
        p = {int(name[2:]): float(row[name]) for name in row if name.startswith("p_")}
        assert int(row["predicted"]) == max(p, key=p.get) and sum(p.values()) == pytest.approx(1)
        line = next(line for line in out.splitlines() if line.startswith(Path(row["image"]).name))
        best = sorted(p, key=p.get, reverse=True)[:3]
        assert re.findall(r"   (\d) ", line) == list(map(str, best))
        assert ("not sure" in line) == (max(p.values()) < predict.UNSURE)
    with Image.open(call.out / "mine_seen.png") as seen:
        assert seen.size[0] > 800
    status, _, err = call(folder, "--exp_name", "mine")
    assert status == 2 and err.startswith("error: 'mine' is there already")


def test_a_network_is_fed_what_is_shown(call, tmp_path, monkeypatch):
    """The pixels on the picture are those that were predicted, and the captions their answers."""
    shown = []
    monkeypatch.setattr(
        "utils.figures.save_mosaic", lambda path, title, *a, **k: shown.append((path, *a))
    )
    for digit in (5, 7):
        Image.fromarray((255 * drawn(digit)).astype(np.uint8)).save(tmp_path / f"{digit}.png")
    paths = [tmp_path / "7.png", tmp_path / "5.png"]
    monkeypatch.setattr(predict, "SHEET", 1)
    assert call(*paths, "--exp_name", "two")[0] == 0
    assert [path.name for path, *_ in shown] == ["two_seen_1.png", "two_seen_2.png"]
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(ROOT / WEIGHTS["sigurd"]))
    for (_, image, captions), row, path in zip(
        shown, table(call.out / "two_predicted.csv"), paths, strict=True
    ):
        assert np.array_equal(image[0], as_trained(read_image(path), MNIST))
        with torch.inference_mode():
            p = model(torch.from_numpy(image)[:, None]).softmax(1)[0].tolist()
        assert [float(row[f"p_{k + 4}"]) for k in range(6)] == pytest.approx(p, rel=1e-4, abs=1e-12)
        assert captions[0].startswith(f"{path.name}\n\n{row['predicted']}   ")


def test_odd_names(call, tmp_path):
    """TeX, a line break, and bytes that are no UTF-8."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b"a$\\frac$b.png", b"new\nline.png", b"bad\xff.png", "四 4.png".encode(), 200 * b"x"]
    Image.fromarray((255 * drawn(5)).astype(np.uint8)).save(tmp_path / "5.png")
    for name in names:
        os.link(tmp_path / "5.png", os.path.join(os.fsencode(folder), name))
    status, out, err = call(folder, "--exp_name", "odd")
    assert (status, err) == (0, "")
    shown = [Path(row["image"]).name for row in table(call.out / "odd_predicted.csv")]
    expected = {"a$\\frac$b.png", "new\\nline.png", "bad\\udcff.png", "四 4.png", 200 * "x"}
    assert set(shown) == expected
    for name in expected:
        assert sum(line.startswith(f"{name} ") for line in out.splitlines()) == 1


def test_raw_images_are_used_as_they_are(call, tmp_path, processed):
    data = open_split("mnist_4_9", train=False)
    for number in range(5):
        Image.fromarray(data.images[number]).save(tmp_path / f"{number}.png")
    drawn_path = tmp_path / "large.png"
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(drawn_path)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    assert call(*paths, "--raw", "--exp_name", "raw")[0] == 0
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(ROOT / WEIGHTS["sigurd"]))
    with torch.inference_mode():
        p = model(data[:5][0]).softmax(1)
    for row, expected in zip(table(call.out / "raw_predicted.csv"), p.tolist(), strict=True):
        found = [float(row[f"p_{digit}"]) for digit in range(4, 10)]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)
    status, _, err = call(drawn_path, "--raw")
    assert status == 2
    assert "400 x 400 pixels, where the data have 28 x 28; without --raw it is prepared" in err
    assert "none of the 1 files is an image to predict" in err
    with pytest.raises(NotADigit):
        as_given(np.zeros((16, 16), np.float32), MNIST)
    with pytest.raises(NotADigit, match="black on white, where the data are white on black"):
        as_given(1 - as_trained(drawn(4), MNIST), MNIST)
    as_given(as_trained(drawn(0, "DejaVuSans-Bold"), USPS), USPS)


def test_wrong_use_is_one_sentence(call, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.pt").write_text("hello")
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    for arguments, sentence in (
        ((tmp_path / "none.png",), "is no existing file or folder"),
        ((tmp_path / "empty",), "empty holds no files"),
    ):
        status, out, err = call(*arguments)
        assert status == 2 and sentence in err and err.count("\n") == 1 and out == ""
    for weights, sentence in (("c.pt", "c.pt is cut off, damaged or no"), ("none.pt", "none.pt")):
        flags = ("--load_checkpoint", tmp_path / weights, "--output_dir", call.out)
        assert predict.main(list(map(str, (tmp_path / "4.png", *flags)))) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and sentence in err and err.count("\n") == 1
    assert not list(call.out.iterdir())
    assert call(tmp_path / "4.png", "--check")[0] == 0
    assert not list(call.out.iterdir())


@pytest.mark.parametrize("username", PEOPLE)
def test_bare_weights_are_recognised(username, tmp_path, capsys):
    model, _ = build_model(username, "usps_0_6")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    flags = ["--load_checkpoint", tmp_path / "bare.pt", "--output_dir", tmp_path]
    assert predict.main(list(map(str, [tmp_path / "4.png", *flags]))) == 0
    out = capsys.readouterr().out
    assert f"network     {PEOPLE[username].model_name} " in out
    assert "digits      0, 1, 2, 3, 4, 5 and 6; a picture of anything else" in out
    assert len(list(tmp_path.glob("prediction_2*_predicted.csv"))) == 1


@pytest.mark.real
def test_real_digits_survive_paper(raw_data, tmp_path):
    """MNIST's training digits, enlarged eightfold, inverted and put somewhere on a white page."""
    data = torchvision.datasets.MNIST(raw_data / "mnist", train=True)
    images, labels = data.data.numpy(), data.targets.numpy()
    kept = np.flatnonzero(labels >= 4)[:300]
    images, labels = images[kept], labels[kept]
    random = np.random.default_rng(0)
    seen = []
    for image in images:
        page = np.ones((500, 500), np.float32)
        y, x = random.integers(0, 500 - 224, 2)
        large = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
        page[y : y + 224, x : x + 224] -= np.asarray(large, dtype=np.float32) / 255
        seen.append(as_trained(noisy(page.clip(0, 1), 0.05), MNIST))
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(ROOT / WEIGHTS["sigurd"]))
    with torch.inference_mode():
        predicted = model(torch.from_numpy(np.array(seen))[:, None]).argmax(1).numpy() + 4
    assert (predicted == labels).mean() > 0.97


def test_start_up_imports_only_what_is_used():
    """``--help`` is answered without any of these."""
    code = (
        "import sys, json; import DJSW.compare, DJSW.predict; print(json.dumps(list(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "sklearn", "matplotlib", "PIL", "scipy"} & set(ran.stdout.split())
