"""Figures, read back from matplotlib's artists."""

import numpy as np
import pytest

from utils.report import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: saved.append(figure))
    return saved


def test_curves_mark_the_best_epoch(tmp_path, drawn):
    rows = [
        {"epoch": k, "train_loss": 2 / k, "validation_loss": loss, "validation_accuracy": 0.9}
        for k, loss in ((1, 2.0), (2, 0.5), (3, 0.7))
    ]
    figures.save_curves(tmp_path / "c", "title", rows)
    losses, accuracy = drawn[0].axes
    training, validation, best = losses.lines
    assert training.get_ydata().tolist() == [2, 1, 2 / 3]
    assert validation.get_ydata().tolist() == [2, 0.5, 0.7]
    assert best.get_label() == "best epoch: 2" and best.get_xdata() == [2, 2]
    assert accuracy.lines[0].get_ydata().tolist() == [90, 90, 90]


def test_mosaic_has_captions_beside_the_images(tmp_path, drawn):
    images = np.random.default_rng(0).random((3, 16, 16))
    figures.save_mosaic(tmp_path / "m", "title", images, ["a", "b", "$c"], columns=2, beside=True)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["a", "b", "$c"]
    canvas = axes.images[0].get_array()
    for image, (y, x) in zip(images, ((0, 0), (0, 38), (19, 0)), strict=True):
        assert (canvas[y : y + 16, x : x + 16] == image).all()


def test_error_rates_by_test_set(tmp_path, drawn):
    groups: dict[str, list[tuple[str, float, float, float]]] = {
        "set 1": [("a", 0.9, 0.85, 0.95), ("b", 0.8, 0.7, 0.85)],
        "set 2": [("a", 1, 0.9, 1)],
    }
    figures.save_error_rates(tmp_path / "e", "title", groups)
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("set 1", "set 2")
    assert [bar.get_width() for bar in first.patches] == pytest.approx([10, 20])
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    ((low, _), (high, _)) = first.collections[0].get_segments()[1]
    assert (low, high) == pytest.approx((15, 30))
    assert second.patches[0].get_width() == 0


def test_saved_as_png_with_any_title(tmp_path):
    figures.save_confusion(tmp_path / "c.png", "数字", [[1, 0], [0, 1]], [3, 8])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a$\\frac$b", "$x$", "one $", "bad\udcff", "new\nline"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    figures.save_error_rates(tmp_path / "e.png", name, {name: [(name, 0.9, 0.85, 0.95)]})
    figures.save_confusion(tmp_path / "c.png", name, [[1, 0], [0, 1]], [3, 8])
    figures.save_mosaic(tmp_path / "m.png", name, np.zeros((1, 9, 9)), ["a"], columns=1)
    assert len(list(tmp_path.iterdir())) == 3
