"""Figures of training runs, evaluations, comparisons and predictions, as PNG or SVG files.

``style.mplstyle`` has their style; a network has the same color in all of them. Margins are fixed
where nothing in them varies: a layout by matplotlib draws each figure twice.
"""

import csv
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from utils.errors import escaped, one_line
from utils.records.evaluation import class_word
from utils.records.files import atomic_write
from utils.records.typed import read_json
from utils.report.robustness_page import SHARES
from utils.report.sweep_page import RankedSettings, SweepRun, settings_text

#: Most errors in one figure: few enough to look at one by one.
GALLERY = 32
#: Width of figures in inches, where they are not smaller.
WIDTH = 7.5

_styled = rc_context(fname=Path(__file__).with_name("style.mplstyle"))


@_styled
def save_curves(path: Path, title: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses and validation error rate by epoch, with the epoch of the lowest loss marked.

    :param title: begins with the network's name, as in :func:`_color`.
    """
    columns = {name: [row[name] for row in history] for name in history[0]}
    best = min(history, key=lambda row: row["validation_loss"])["epoch"]
    figure = Figure(figsize=(WIDTH, 3))
    figure.suptitle(_plain(title))
    losses, errors = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.15, top=0.9, wspace=0.22)
    long = len(history) > 30
    line: dict[str, Any] = {"linewidth": 0.7} if long else {"marker": "."}
    losses.plot(columns["epoch"], columns["train_loss"], color="0.55", label="training", **line)
    line["color"] = _color(title)
    losses.plot(columns["epoch"], columns["validation_loss"], label="validation", **line)
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    _plain_log(losses.yaxis)
    rates = 100 * (1 - np.array(columns["validation_accuracy"]))
    errors.plot(columns["epoch"], rates, **line)
    # The first tenth, which falls from a guess, would flatten the rest.
    errors.set_ylim(0, 1.15 * rates[len(rates) // 10 :].max() or 1)
    errors.set(xlabel="epoch", ylabel="validation error rate / %")
    for axes in (losses, errors):
        axes.axvline(best, color="0.4", linestyle=":", label=f"best epoch: {best:g}", zorder=3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    losses.legend()
    _save(figure, path)


@_styled
def save_confusion(path: Path, record: Mapping[str, Any]) -> None:
    """Draw an evaluation's images by true class (row) and predicted class.

    Errors are shaded by their share of the row; at its end is the error rate of the class.
    """
    counts, labels = np.array(record["confusion"]), record["classes"]
    names, word = record.get("class_names", labels), class_word(record)
    rates = counts / counts.sum(1, keepdims=True).clip(1)
    error_rates = [f"{100 * (1 - rate):.1f}" for rate in rates.diagonal()]
    np.fill_diagonal(rates, 0)
    texts = [_plain(one_line(str(name), 20)) for name in names]
    longest, scale = max(map(len, texts)), max(1, len(labels) / 12)
    figure = Figure(figsize=(5 * scale, 4.6 * scale))
    axes = figure.subplots()
    start = 0.1 + 0.015 * (longest - 1) / scale
    figure.subplots_adjust(left=start, right=0.88, bottom=start + 0.01, top=0.92)
    shades = LinearSegmentedColormap.from_list("", ["white", _color(record["model"]["name"])])
    places = range(len(labels))
    # Black is legible on the darkest shade, 70 % of the network's color.
    darkest, some = max(rates.max(), 0.01) / 0.7, np.where(rates, rates, np.nan)
    axes.pcolormesh(places, places, some, cmap=shades, vmin=0, vmax=darkest)
    for row, column in np.argwhere(counts):
        weight = "bold" if row == column else "normal"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", weight=weight)
    axes.set(xlabel=f"predicted {word}", ylabel=f"true {word}", aspect="equal")
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
    errors = record["images"] - record["correct"]
    axes.set_title(f"{_heading(record)}: {errors} errors", wrap=True)
    axes.set_xticks(places, texts, rotation=90 * (longest > 2))
    axes.set_yticks(places, texts)
    axes.grid(visible=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, error_rates)
    right.set_ylabel(f"error rate of the {word} / %")
    _save(figure, path)


@_styled
def save_mosaic(
    path: Path,
    title: str,
    images: np.ndarray,
    captions: Sequence[str],
    columns: int,
    *,
    beside: bool = False,
) -> None:
    """Draw images (N, H, W) or (N, H, W, 3), uint8 or in [0, 1], with captions below or beside."""
    count, height, width, *channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    room = max(8, 14 * width // height)  # characters below an image and its margin
    if not beside and max(len(line) for each in captions for line in each.split("\n")) > room:
        each_name = [re.sub("(→|,) ", r"\1\n", caption).split("\n") for caption in captions]
        captions = ["\n".join(textwrap.fill(line, room) for line in each) for each in each_name]
    # One canvas for all images: axes for each would take ten times as long.
    lines = max(2, *(caption.count("\n") + 1 for caption in captions))
    pitch_y = round(height * (1.2 if beside else 1.16 + 0.17 * lines))
    pitch_x = round(width + 1.4 * height if beside else 1.25 * width)
    lightest = 255 if images.dtype == np.uint8 else 1
    canvas = np.full((rows * pitch_y, columns * pitch_x, *channels), lightest, images.dtype)
    scale = 1.04 if beside else 0.73  # inches of an image
    wide, tall = scale * columns * pitch_x / height + 0.2, scale * rows * pitch_y / height + 0.5
    figure = Figure(figsize=(max(wide, 5), tall))  # 5: room for the title
    axes = figure.add_axes((0.02, 0.1 / tall, 0.96, 1 - 0.5 / tall))
    left, top, align = (1.05 * width, 0, "left") if beside else (width / 2, height + 0.5, "center")
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        y, x = number // columns * pitch_y, number % columns * pitch_x
        x += 0 if beside else (pitch_x - width) // 2
        canvas[y : y + height, x : x + width] = image
        axes.text(x + left, y + top, caption, ha=align, va="top", fontsize=8, parse_math=False)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=lightest, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(_plain(title), wrap=True)
    _save(figure, path, 256 if channels else 64)


@_styled
def save_predictions(
    path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]], captions: Sequence[str]
) -> None:
    """Draw each image as it is in its picture, as the network sees it, and its caption."""
    side, gap = 112, 8
    panels = np.ones((len(pairs), side, 2 * side + gap), np.float32)
    for panel, (original, seen) in zip(panels, pairs, strict=True):
        scale = side / max(original.shape)
        height, width = (max(1, round(scale * length)) for length in original.shape)
        image = Image.fromarray(original).resize((width, height), Image.Resampling.BOX)
        top, left = (side - height) // 2, (side - width) // 2
        panel[top : top + height, left : left + width] = np.asarray(image)
        pixels = Image.fromarray(seen).resize((side, side), Image.Resampling.NEAREST)
        panel[:, side + gap :] = np.asarray(pixels)
    title = "each in its picture, as the network sees it, and its most probable classes"
    save_mosaic(path, title, panels, captions, columns=3, beside=True)


@_styled
def save_reliability(path: Path, record: Mapping[str, Any]) -> None:
    """Draw the accuracy in each bin of confidence with its interval, and the number of images."""
    bins = record["calibration"]
    figure = Figure(figsize=(5, 5))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(left=0.15, right=0.96, bottom=0.1, top=0.93, hspace=0.1)
    color = _color(record["model"]["name"])
    accuracy = np.array([row["right"] / row["images"] for row in bins])
    low, high = np.array([[row["low"], row["high"]] for row in bins]).T
    # Rounding may put an end on the wrong side of an accuracy of 0 or 1.
    ends = np.maximum([accuracy - low, high - accuracy], 0)
    above.plot([0, 1], [0, 1], color="0.4", linestyle="--")
    along: dict[str, Any] = {"rotation_mode": "anchor", "transform_rotates_text": True}
    # Beside the line, left of the least confidence that there can be with a few digits.
    above.text(0.02, 0.04, "confidence = accuracy", rotation=45, color="0.4", **along)
    confidence = [row["confidence"] for row in bins]
    above.errorbar(confidence, accuracy, ends, fmt="o", color=color, clip_on=False)
    above.set_title(_heading(record), wrap=True)
    above.set(ylabel="accuracy, with 95 % interval", xlim=(0, 1), ylim=(0, 1.02))
    edges, widths = [row["above"] for row in bins], [row["up_to"] - row["above"] for row in bins]
    images = [row["images"] for row in bins]
    below.bar(edges, images, widths, align="edge", color=color, edgecolor="white")
    below.set(xlabel=f"confidence: probability of the predicted {class_word(record)}")
    below.set(ylabel="images")
    below.set(yscale="log", ylim=(0.5, None))
    below.yaxis.set_major_formatter("{x:g}")
    below.yaxis.set_minor_formatter(NullFormatter())
    _save(figure, path)


@_styled
def save_error_rates(path: Path, test_sets: Sequence[Mapping[str, Any]]) -> None:
    """Draw the error rates of a comparison's test sets with their intervals, and write them.

    :param test_sets: what ``TestSet.record`` returns.
    """
    heights = [len(each["ranking"]) + 1 for each in test_sets]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(test_sets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, each in zip(panels, test_sets, strict=True):
        ranking = each["ranking"]
        for place, row in enumerate(ranking):
            rate, most, least = 100 * (1 - np.array([row["accuracy"], *row["interval"]]))
            ends = [[max(rate - least, 0)], [max(most - rate, 0)]]
            axes.errorbar(rate, place, xerr=ends, fmt="o", color=_color(row["layers"]))
            beside: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points"}
            axes.annotate(f"{rate:.2f}", (max(rate, most), place), va="center_baseline", **beside)
        axes.set_yticks(range(len(ranking)), [_plain(one_line(row["name"], 45)) for row in ranking])
        axes.set_title(f"{_plain(each['dataset']['name'])}, {each['images']} test images")
        axes.set(xlim=(0, 1.1 * axes.dataLim.x1 or 1), ylim=(len(ranking) - 0.5, -0.5))
    panels[-1].set_xlabel("test error rate / %, with 95 % interval")
    _save(figure, path)


@_styled
def save_robustness(path: Path, dataset: str, found: Mapping[str, Any]) -> None:
    """Draw accuracy by the strength of each corruption, with intervals, and without the least sure.

    :param found: what ``DJSW.robustness.measure`` returns.
    """
    figure = Figure(figsize=(WIDTH, 7.2))
    bottom = 0.1 + 0.03 * -(-len(found["networks"]) // 3)
    figure.subplots_adjust(0.08, bottom, 0.98, 0.92, hspace=0.65)
    figure.suptitle(f"{found['images']} test images of {_plain(dataset)}; bands: 95 % intervals")
    panels = figure.subplots(3, 3)
    looks: dict[str, dict[str, Any]] = {}
    for name in found["networks"]:
        color = _color(name)
        others = sum(look["color"] == color for look in looks.values())
        line, marker = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))[others % 4]
        looks[name] = {"color": color, "linestyle": line, "marker": marker, "markersize": 3.5}
    for (kind, (text, strengths)), axes in zip(
        found["corruptions"].items(), panels.flat, strict=False
    ):
        for name, own in found["networks"].items():
            values = 100 * np.array([own["accuracy"]["none"][0], *own["accuracy"][kind][1:]])
            axes.plot(
                (0, *strengths), values[:, 0], label=_plain(one_line(name, 26)), **looks[name]
            )
            axes.fill_between((0, *strengths), *values[:, 1:].T, color=_color(name), alpha=0.15)
        axes.set(title=kind, xlabel=textwrap.fill(text, 28), ylim=(0, 102))
    last = panels[2, 2]
    for name, own in found["networks"].items():
        last.plot(100 * np.array(SHARES), [100 * row[0] for row in own["selective"]], **looks[name])
    last.set(title="without the least sure", xlabel="set aside / %")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy / %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3)
    _save(figure, path)


@_styled
def save_sweep(
    path: Path,
    title: str,
    runs: Sequence[SweepRun],
    ranked: Sequence[RankedSettings],
    importance: Mapping[str, float],
    curves: Sequence[Sequence[Sequence[float]]],
) -> None:
    """Draw a sweep: loss by each setting, best loss by trial, importance, curves of the best.

    :param title: begins with the network's name, as in :func:`_color`.
    :param curves: validation losses by epoch, of the runs of the first of ``ranked``.
    """
    known = dict.fromkeys(name for each in ranked for name in each.settings)
    names = [name for name in known if len({str(r.settings.get(name)) for r in ranked}) > 1]
    panels = len(names) + 1 + bool(importance) + bool(curves)
    rows = -(-panels // 2)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.3), layout="constrained")
    figure.suptitle(f"{_plain(title)}: mean validation loss, with standard errors")
    axes = iter(figure.subplots(rows, 2, squeeze=False).flat)
    for name in names:
        _draw_setting(next(axes), name, ranked, _color(title))
    by_trial: dict[int, list[float]] = {}
    for run in runs:
        if run.status == "finished" and run.loss is not None:
            by_trial.setdefault(run.trial, []).append(run.loss)
    losses = [np.mean(values) for values in by_trial.values()]
    history, color = next(axes), _color(title)
    history.plot(list(by_trial), losses, ".", color=color, alpha=0.5, label="trial")
    lowest = np.minimum.accumulate(losses)
    history.step(list(by_trial), lowest, color=color, where="post", label="best so far")
    history.set(xlabel="trial", ylabel="validation loss")
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.legend()
    if importance:
        bars = next(axes)
        bars.barh([_plain(name) for name in importance], list(importance.values()), color=color)
        bars.set(xlabel="share of the variance (fANOVA)", ylim=(len(importance) - 0.5, -0.5))
    if curves:
        _draw_curves(next(axes), ranked, curves, color)
    for rest in axes:
        rest.set_axis_off()
    _save(figure, path)


def redraw(picture: Path, to: Path) -> None:
    """Draw a published figure again, as PNG or SVG, if the records beside it have all of it."""
    name, _, kind = picture.stem.rpartition("_")
    stem, robustness, dataset = picture.stem.partition("_robustness_")
    if kind == "curves":
        run = read_json(picture.with_name(f"{name}_run.json"))
        lines = picture.with_name(f"{name}_history.csv").read_text().splitlines()
        rows = [{key: float(row[key]) for key in row} for row in csv.DictReader(lines)]
        save_curves(to, f"{run['model']['name']} on {run['dataset']['name']}", rows)
    elif kind in ("confusion", "reliability"):
        draw = save_confusion if kind == "confusion" else save_reliability
        draw(to, read_json(picture.with_name(f"{name}_metrics.json")))
    elif kind == "comparison":
        save_error_rates(to, read_json(picture.with_suffix(".json"))["test_sets"])
    elif robustness:
        record = read_json(picture.with_name(f"{stem}_robustness.json"))
        save_robustness(to, dataset, record["datasets"][dataset])


def _draw_setting(axes: Any, name: str, ranked: Sequence[RankedSettings], color: str) -> None:
    """Draw the mean loss of each of the settings by one of them."""
    values: list[Any] = [each.settings.get(name) for each in ranked]
    losses, errors = [each.mean for each in ranked], [each.error or 0 for each in ranked]
    floats = all(isinstance(value, float) for value in values)
    kinds = sorted(set(map(str, values)), key=lambda text: (len(text), text))
    places = values if floats else [kinds.index(str(value)) for value in values]
    axes.errorbar(places, losses, errors, fmt=".", color=color, alpha=0.6)
    axes.set(xlabel=_plain(name.removeprefix("set.")), ylabel="validation loss")
    if not floats:
        axes.set_xticks(range(len(kinds)), map(_plain, kinds))
        axes.margins(x=0.15)
    elif min(values) > 0:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
        if len(set(values)) <= 6:
            axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
            axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_curves(
    axes: Any, ranked: Sequence[RankedSettings], curves: Sequence[Any], color: str
) -> None:
    """Draw the mean curves of the best settings, the first of them in color."""
    labels = [settings_text(each.settings) for each in ranked]
    if max(map(len, labels)) > 30:
        labels = [f"rank {number + 1}" for number in range(len(ranked))]
    shades = (color, "0.2", "0.45", "0.65", "0.8")
    for label, shade, histories in zip(labels, shades, curves, strict=False):
        length = min(map(len, histories))
        values = np.array([losses[:length] for losses in histories])
        epochs = np.arange(1, length + 1)
        axes.plot(epochs, values.mean(0), color=shade, linewidth=1, label=_plain(label))
        if len(values) > 1:
            ends = values.mean(0) - values.std(0, ddof=1), values.mean(0) + values.std(0, ddof=1)
            axes.fill_between(epochs, *ends, color=shade, alpha=0.2)
    axes.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    axes.set_title("mean, band: standard deviation")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _plain_log(axes.yaxis)
    if ranked[0].settings:
        axes.legend(loc="upper right")  # losses fall


def _plain_log(axis: Any) -> None:
    """Label a logarithmic axis with 0.02, 0.05, 0.1, …; powers of ten take 0.1 s to draw."""
    low, high = axis.get_view_interval()
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def _plain(text: str) -> str:
    """Return text of a file so that it is drawn as it is: no formulas, no line breaks."""
    return escaped(text).replace("$", r"\$")


def _heading(record: Mapping[str, Any]) -> str:
    """Return the network and the test set of an evaluation."""
    network, dataset = record["model"]["name"], record["dataset"]["name"]
    return _plain(f"{network} on {record['images']} test images of {dataset}")


def _color(text: str) -> str:
    """Return the color of the network whose name a text begins with.

    >>> _color("SMLP on mnist_4_9") == _color("smlp_tuned_3") == _color("5 x SMLP 784-6")
    True
    """
    # A place in the style's cycle, by the name alone, at which SMLP, WMLP, DMLP and CNet differ.
    return f"C{sum(map(ord, re.sub(r'^[0-9]+ x |[ _].*', '', text.lower())))}"


def _save(figure: Figure, path: Path, colors: int = 64) -> None:
    """Save as SVG without a background, if the path says so, or as PNG of so many colors."""
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file name in Chinese, say
        if path.suffix == ".svg":
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        few = picture.quantize(colors, dither=Image.Dither.NONE)
        few.save(temporary, format="png", optimize=True)
