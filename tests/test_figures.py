"""Figures, read back from matplotlib's artists and from the files."""

from itertools import combinations, pairwise

import matplotlib as mpl
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from DJSW.pipelines import PEOPLE
from utils.corruptions import CORRUPTIONS
from utils.report import figures
from utils.report.robustness_page import SHARES
from utils.report.sweep_page import SweepRun, rank_settings

STYLE = mpl.rc_params_from_file(ROOT / "utils" / "report" / "style.mplstyle")


def history(*losses):
    """Rows of a history with these validation losses."""
    names = ("epoch", "train_loss", "validation_loss", "validation_accuracy")
    rows = [(k, 2 / k, loss, 1 - loss / 10) for k, loss in enumerate(losses, 1)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def evaluation(network, dataset="mnist_4_9", classes=(3, 8)):
    """Return what the figures need of an evaluation's record."""
    names = ("above", "up_to", "images", "right", "confidence", "low", "high")
    rows = [(0.2, 0.3, 1, 0, 0.25, 0, 0.8), (0.9, 1, 9999, 9990, 0.99, 0.998, 1)]
    count = len(classes)
    return {
        **{"model": {"name": network}, "dataset": {"name": dataset}, "classes": [*classes]},
        **{"images": 10000 * count, "correct": 9950 * count},
        "confusion": (9900 * np.eye(count, dtype=int) + 50).tolist(),
        "calibration": [dict(zip(names, row, strict=True)) for row in rows],
    }


def ranking(*rows, dataset="set 1", images=20):
    """Return a test set of a comparison."""
    names = ("name", "layers", "accuracy", "interval")
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    return {"dataset": {"name": dataset}, "images": images, "ranking": entries}


def beyond(*names):
    """Return what DJSW.robustness.measure finds of networks."""
    accuracy = {kind: [[0.9, 0.85, 0.95]] * 6 for kind in CORRUPTIONS} | {"none": [[0.99, 0.98, 1]]}
    own = {"accuracy": accuracy, "selective": [[0.99, 0.9]] * len(SHARES)}
    return {"images": 5843, "corruptions": CORRUPTIONS, "networks": dict.fromkeys(names, own)}


def sweep():
    """Return runs of two settings, their ranking, importance and curves."""
    values = ("constant", 0.001), ("one_cycle", 0.004)
    runs = [
        SweepRun(
            trial, "r", {"schedule": kind, "lr": lr}, seed, None, "finished", "", 1, lr, 0.9, 1
        )
        for trial, (kind, lr) in enumerate(values)
        for seed in (1, 2)
    ]
    curves = [[[2, 0.01], [1, 0.02]], [[2, 0.02], [2, 0.03]]]
    return runs, rank_settings(runs), {"schedule": 0.7, "lr": 0.3}, curves


DRAW = {
    "curves": lambda path: figures.save_curves(path, "SMLP on d", history(2, 0.5, 1e-7)),
    "long curves": lambda path: figures.save_curves(
        path, "d", history(*np.geomspace(2, 1e-4, 1200))
    ),
    "confusion": lambda path: figures.save_confusion(path, evaluation("SMLP", classes=range(10))),
    "reliability": lambda path: figures.save_reliability(
        path, evaluation("LongNetwork", "mnist_0_9")
    ),
    "comparison": lambda path: figures.save_error_rates(
        path, [ranking(("n" * 200, "SMLP 784", 0.7, (0.5, 0.9)), ("s", "x", 1, (1, 1)))] * 3
    ),
    "robustness": lambda path: figures.save_robustness(
        path, "mnist_4_9", beyond(*(f"smlp_{k}" * 8 for k in range(4)))
    ),
    "sweep": lambda path: figures.save_sweep(path, "SMLP on d", *sweep()),
    "errors": lambda path: figures.save_mosaic(
        path, "t " * 80, np.zeros((32, 28, 28)), ["4 → 9\n> 99.9 %"] * 32, columns=8
    ),
    "names": lambda path: figures.save_mosaic(
        path, "t", np.zeros((9, 28, 28)), ["T-shirt/top → ankle boot, bag\n> 99.9 %"] * 9, columns=8
    ),
    "one error": lambda path: figures.save_mosaic(
        path, "wrong " * 12, np.zeros((1, 28, 28)), ["4 → 9, 7"], columns=8
    ),
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, *_: saved.append(figure))
    return saved


@pytest.mark.parametrize("name", DRAW)
def test_text_is_inside_the_picture_and_legible(name, tmp_path, monkeypatch):
    """No text leaves the picture, texts of an axis do not overlap, and 8 points are the least."""

    def check(figure, path, *_):
        FigureCanvasAgg(figure).draw()
        width, height = figure.get_size_inches() * figure.dpi
        # 900 pixels are shown at 800; the sheets of digits are a little wider.
        assert width <= 1020, "no larger than what a page shows"
        texts = [each for each in figure.findobj(Text) if each.get_visible() and each.get_text()]
        outside = {label for axes in figure.axes for label in _hidden_labels(axes)}
        for text in (each for each in texts if each not in outside):
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1, text
            assert box.y0 >= -1 and box.y1 <= height + 1, text
            assert text.get_fontsize() >= 8, text
        for axes in figure.axes:
            labels = [each for each in axes.get_xticklabels(which="both") if each.get_text()]
            boxes = sorted(
                (each.get_window_extent() for each in labels if each not in outside),
                key=lambda box: box.x0,
            )
            assert all(a.x1 <= b.x0 for a, b in pairwise(boxes)), name

    monkeypatch.setattr(figures, "_save", check)
    DRAW[name](tmp_path / "p.png")


def _hidden_labels(axes):
    """Labels of ticks outside the limits, which are not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not axes.axison or not low - 1e-9 <= tick.get_loc() <= high * (1 + 1e-9) + 1e-12:
                yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("name", DRAW)
def test_png_is_small(name, tmp_path):
    DRAW[name](tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 50_000
    with Image.open(tmp_path / "a.png") as picture:
        colors = picture.convert("RGB").getcolors()
        assert picture.mode == "P" and colors is not None and 2 < len(colors) <= 64


@pytest.mark.parametrize("name", ["curves", "confusion"])
def test_svg_is_the_same_again_and_has_no_background(name, tmp_path):
    for copy in ("a", "b"):
        DRAW[name](tmp_path / f"{copy}.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text() and "<dc:date>" not in text
    background = text.partition('id="patch_1"')[2].partition("</g>")[0]
    assert "fill: none" in background and 'style="fill: #ffffff"' not in text


def test_a_network_has_one_color(tmp_path, drawn):
    """In all figures, for a class, a run or an ensemble; and people's networks differ."""
    figures.save_curves(tmp_path / "c", "SMLP on mnist_4_9", history(2, 0.5))
    figures.save_reliability(tmp_path / "r", evaluation("SMLP"))
    rows = [("x", "SMLP 784-6", 0.9, (0.8, 0.95)), ("y", "5 x SMLP 784-6", 0.8, (0.7, 0.85))]
    figures.save_error_rates(tmp_path / "e", [ranking(*rows)])
    figures.save_robustness(tmp_path / "b", "d", beyond("smlp_tuned_3", "smlp_mine", "wmlp_tuned"))
    curves, reliability, rates, robustness = drawn
    with mpl.rc_context(STYLE):
        found = {to_hex(curves.axes[0].lines[1].get_color())}
        found.add(to_hex(reliability.axes[1].patches[0].get_facecolor()))
        found |= {to_hex(each.lines[0].get_color()) for each in rates.axes[0].containers}
        mine, other, waly = robustness.axes[0].lines
        found |= {to_hex(mine.get_color()), to_hex(other.get_color())}
        assert len(found) == 1
        assert to_hex(waly.get_color()) not in found
        assert mine.get_linestyle() != other.get_linestyle()
        assert mine.get_marker() != other.get_marker()
        networks = {person.model_name for person in PEOPLE.values()} | {"CNet"}
        assert len({to_hex(figures._color(name)) for name in networks}) == len(networks)


def test_colors_differ_for_the_color_blind():
    """As seen without red or green cones (Machado et al. 2009), and without any color in part."""
    colors = [to_rgb(each["color"]) for each in STYLE["axes.prop_cycle"]]
    protan = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
    deutan = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    for seen in (protan, deutan):
        linear = np.array(colors) ** 2.2 @ seen.T
        pairs = combinations(linear.clip(0, 1) ** (1 / 2.2), 2)
        assert min(np.linalg.norm(a - b) for a, b in pairs) > 0.15


def test_curves_mark_the_best_epoch(tmp_path, drawn):
    figures.save_curves(tmp_path / "c", "title", history(2.0, 0.5, 0.7))
    losses, errors = drawn[0].axes
    training, validation, best = losses.lines
    assert training.get_ydata().tolist() == [2, 1, 2 / 3]
    assert validation.get_ydata().tolist() == [2, 0.5, 0.7]
    assert best.get_label() == "best epoch: 2" and best.get_xdata() == [2, 2]
    assert errors.lines[0].get_ydata() == pytest.approx([20, 5, 7])


def test_long_curves_have_no_markers_and_show_the_later_epochs(tmp_path, drawn):
    figures.save_curves(tmp_path / "c", "title", history(5, *np.full(99, 0.2)))
    figures.save_curves(tmp_path / "c", "title", history(5, 0.2))
    (long, errors), (short, _) = (figure.axes for figure in drawn)
    assert long.lines[0].get_marker() == "None" and short.lines[0].get_marker() == "."
    assert errors.get_ylim() == pytest.approx((0, 2.3))
    FigureCanvasAgg(drawn[1]).draw()
    texts = [each.get_text() for each in short.get_yticklabels(which="both")]
    assert {"0.2", "0.5", "1", "2"} <= {*texts} and not any("^" in text for text in texts)


def test_confusion_shades_errors_by_their_share(tmp_path, drawn):
    """There is no bar of colors to be read: each cell has its number, each row its error rate."""
    record = evaluation("SMLP") | {"confusion": [[90, 10], [1, 199]], "images": 300, "correct": 289}
    figures.save_confusion(tmp_path / "c", record)
    (axes,) = drawn[0].axes
    assert axes.collections[0].get_array().tolist() == [[None, 0.1], [0.005, None]]
    rows = axes.child_axes[0].yaxis
    assert [each.get_text() for each in rows.get_ticklabels()] == ["10.0", "0.5"]
    assert axes.get_title() == "SMLP on 300 test images of mnist_4_9: 11 errors"


def test_mosaic_has_captions_beside_the_images(tmp_path, drawn):
    images = np.random.default_rng(0).random((3, 16, 16))
    figures.save_mosaic(tmp_path / "m", "title", images, ["a", "b", "$c"], columns=2, beside=True)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["a", "b", "$c"]
    canvas = axes.images[0].get_array()
    for image, (y, x) in zip(images, ((0, 0), (0, 38), (19, 0)), strict=True):
        assert (canvas[y : y + 16, x : x + 16] == image).all()


def test_mosaic_is_in_color_and_wraps_names(tmp_path, drawn):
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    captions = ["T-shirt/top → coat, bag", "HerbaceousVegetation"]
    figures.save_mosaic(tmp_path / "m", "title", images, captions, columns=2)
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["T-shirt/top →\ncoat,\nbag", "HerbaceousVege\ntation"]
    canvas = axes.images[0].get_array()
    assert (canvas[:8, 1:9] == images[0]).all() and (canvas[:8, 11:19] == images[1]).all()


def test_images_in_color_keep_their_colors(tmp_path):
    """Noise of 64 pixels, whose colors a palette of 64 for the figure would change."""
    image = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), np.uint8)
    figures.save_mosaic(tmp_path / "m.png", "title", image, ["a"], columns=1)
    with Image.open(tmp_path / "m.png") as picture:
        found = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    distances = np.abs(found[:, None] - image.reshape(1, -1, 3).astype(int)).sum(2).min(0)
    assert distances.max() <= 12


def test_error_rates_by_test_set(tmp_path, drawn):
    first = [("a", "SMLP", 0.9, (0.85, 0.95)), ("b", "SMLP", 0.8, (0.7, 0.85))]
    second = ranking(("a", "SMLP", 1, (0.9, 1)), dataset="set 2")
    figures.save_error_rates(tmp_path / "e", [ranking(*first), second])
    upper, lower = drawn[0].axes
    assert (upper.get_title(), lower.get_title()) == (
        "set 1, 20 test images",
        "set 2, 20 test images",
    )
    dots = [each.lines[0].get_xydata()[0].tolist() for each in upper.containers]
    assert dots == [pytest.approx([10, 0]), pytest.approx([20, 1])]
    assert [text.get_text() for text in upper.texts] == ["10.00", "20.00"]
    assert [label.get_text() for label in upper.get_yticklabels()] == ["a", "b"]
    ((segment,),) = (each.get_segments() for each in upper.containers[1].lines[2])
    assert segment[:, 0] == pytest.approx([15, 30])
    assert lower.containers[0].lines[0].get_xdata()[0] == 0


@pytest.mark.parametrize("name", ["a$\\frac$b", "$x$", "one $", "bad\udcff", "new\nline", "数字"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    figures.save_error_rates(tmp_path / "e.png", [ranking((name, name, 0.9, (0.85, 0.95)))])
    figures.save_confusion(tmp_path / "c.png", evaluation(name, name))
    figures.save_mosaic(tmp_path / "m.png", name, np.zeros((1, 9, 9)), ["a"], columns=1)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("picture", "drawn"),
    [
        ("weights/SMLP/smlp_standard_4_curves", True),
        ("reports/standard/smlp_standard_4_confusion", True),
        ("reports/standard/smlp_standard_4_reliability", True),
        ("reports/standard/smlp_standard_4_errors", False),
        ("reports/comparisons/tuned_comparison", True),
        ("reports/comparisons/tuned_comparison_hard_1", False),
        ("reports/robustness/published_robustness_usps_0_6", True),
    ],
)
def test_published_figures_are_drawn_again(picture, drawn, tmp_path):
    """Those for which records are enough; others need images."""
    figures.redraw(ROOT / f"{picture}.png", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").exists() is drawn
