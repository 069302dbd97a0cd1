"""Figures of training runs, evaluations, comparisons and predictions, as PNG files.

Margins are fixed where nothing in them varies: a layout by matplotlib draws each figure twice.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from utils.errors import escaped
from utils.records.files import atomic_write
from utils.report.robustness_page import SHARES
from utils.report.sweep_page import RankedSettings, SweepRun, settings_text
from utils.report.tables import percent

#: Most errors in one figure: few enough to look at one by one.
GALLERY = 32


def save_curves(path: Path, title: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses and validation accuracy by epoch, with the epoch of the lowest loss marked."""
    columns = {name: [row[name] for row in history] for name in history[0]}
    best = min(history, key=lambda row: row["validation_loss"])["epoch"]
    figure = Figure(figsize=(10, 4))
    figure.suptitle(_plain(title))
    losses, accuracies = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.13, top=0.88)
    losses.plot(columns["epoch"], columns["train_loss"], ".-", label="training")
    losses.plot(columns["epoch"], columns["validation_loss"], ".-", label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    _plain_log(losses.yaxis)
    percentages = 100 * np.array(columns["validation_accuracy"])
    accuracies.plot(columns["epoch"], percentages, ".-C1", label="validation")
    accuracies.set(xlabel="epoch", ylabel="accuracy / %")
    for axes in (losses, accuracies):
        axes.axvline(best, color="0.6", linestyle=":", label=f"best epoch: {best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def save_confusion(
    path: Path, title: str, confusion: Sequence[Sequence[int]], digits: Sequence[int]
) -> None:
    """Draw the images by true digit (row) and predicted digit, errors colored by proportion."""
    counts = np.array(confusion)
    rates = counts / counts.sum(1, keepdims=True).clip(1)
    np.fill_diagonal(rates, 0)
    largest = max(rates.max(), 0.01)
    figure = Figure(figsize=(5.5, 5))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.95, bottom=0.1, top=0.92)
    image = axes.imshow(rates, cmap="Reds", vmin=0, vmax=largest)
    for row, column in np.argwhere(counts):
        color = "white" if rates[row, column] > 0.6 * largest else "black"
        weight = "bold" if row == column else "normal"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color, weight=weight)
    axes.set(title=_plain(title), xlabel="predicted digit", ylabel="true digit")
    axes.set_xticks(range(len(digits)), map(str, digits))
    axes.set_yticks(range(len(digits)), map(str, digits))
    bar = figure.colorbar(image, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("errors, as a proportion of the true digit's images")
    _save(figure, path)


def save_errors(
    path: Path,
    title: str,
    images: np.ndarray,
    true: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
) -> None:
    """Draw misclassified images (N, H, W) with true digit, predicted digit and confidence."""
    captions = [
        f"{digit} taken for {other}\n{percent(probability)}"
        for digit, other, probability in zip(true, predicted, confidence, strict=True)
    ]
    save_mosaic(path, title, images, captions, columns=8)


def save_mosaic(
    path: Path,
    title: str,
    images: np.ndarray,
    captions: Sequence[str],
    columns: int,
    *,
    beside: bool = False,
) -> None:
    """Draw images (N, H, W), uint8 or in [0, 1], with captions below or beside them."""
    count, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    # One canvas for all images: axes for each would take ten times as long.
    pitch_y = round(height * (1.2 if beside else 1.5))
    pitch_x = round(width * (2.4 if beside else 1.25))
    lightest = 255 if images.dtype == np.uint8 else 1
    canvas = np.full((rows * pitch_y, columns * pitch_x), lightest, images.dtype)
    wide, tall = 1.04 * columns * pitch_x / width + 0.2, 1.04 * rows * pitch_y / height + 0.5
    figure = Figure(figsize=(max(wide, 5), tall))  # 5: room for the title
    axes = figure.add_axes((0.02, 0.1 / tall, 0.96, 1 - 0.5 / tall))
    left, top, align = (1.05 * width, 0, "left") if beside else (width / 2, height + 0.5, "center")
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        y, x = number // columns * pitch_y, number % columns * pitch_x
        x += 0 if beside else (pitch_x - width) // 2
        canvas[y : y + height, x : x + width] = image
        axes.text(x + left, y + top, caption, ha=align, va="top", fontsize=8, parse_math=False)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=lightest)
    axes.set_axis_off()
    axes.set_title(_plain(title))
    _save(figure, path)


def save_reliability(path: Path, title: str, bins: Sequence[Mapping[str, float]]) -> None:
    """Draw the accuracy in each bin of confidence with its interval, and the number of images."""
    figure = Figure(figsize=(5, 5.5))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(left=0.15, right=0.96, bottom=0.1, top=0.93, hspace=0.08)
    edges = [row["above"] for row in bins]
    widths = [row["up_to"] - row["above"] for row in bins]
    accuracy = np.array([row["right"] / row["images"] for row in bins])
    low, high = np.array([[row["low"], row["high"]] for row in bins]).T
    # Rounding may put an end on the wrong side of an accuracy of 0 or 1.
    ends = np.maximum([accuracy - low, high - accuracy], 0)
    above.bar(edges, accuracy, widths, align="edge", color="C0", alpha=0.5, edgecolor="white")
    above.plot([0, 1], [0, 1], color="0.4", linestyle="--", label="confidence = accuracy")
    confidence, label = [row["confidence"] for row in bins], "measured, 95 % interval"
    above.errorbar(confidence, accuracy, ends, fmt="o", markersize=4, color="C3", label=label)
    above.set(title=_plain(title), ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    below.bar(edges, [row["images"] for row in bins], widths, align="edge", edgecolor="white")
    below.set(xlabel="confidence: probability of the predicted digit", ylabel="images")
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:g}")
    below.yaxis.set_minor_formatter(NullFormatter())
    for axes in (above, below):
        axes.grid(alpha=0.3)
    _save(figure, path)


def save_error_rates(
    path: Path, title: str, groups: Mapping[str, Sequence[tuple[str, float, float, float]]]
) -> None:
    """Draw bars of error rates from (name, accuracy, low, high) of the entries of test sets."""
    names = [row[0] for rows in groups.values() for row in rows]
    size = 6 + 0.08 * max(map(len, names)), 1.2 + 0.9 * len(groups) + 0.35 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_plain(title))
    ratios = [len(rows) + 1 for rows in groups.values()]
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (test_set, rows) in zip(panels, groups.items(), strict=True):
        error, most, least = 100 * (1 - np.array([row[1:] for row in rows])).T
        ends = np.maximum([error - least, most - error], 0)
        axes.barh(range(len(rows)), error, xerr=ends, color="C0", alpha=0.6, capsize=3)
        axes.set_yticks(range(len(rows)), [_plain(row[0]) for row in rows])
        axes.set(title=_plain(test_set), xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("test error rate / %, with 95 % intervals")
    _save(figure, path)


def save_robustness(path: Path, title: str, found: Mapping[str, Any]) -> None:
    """Draw accuracy by the strength of each corruption, with intervals, and without the least sure.

    :param found: what ``DJSW.robustness.measure`` returns.
    """
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(_plain(title))
    panels = figure.subplots(3, 3).flat
    for (kind, (text, strengths)), axes in zip(found["corruptions"].items(), panels, strict=False):
        for name, own in found["networks"].items():
            values = np.array([own["accuracy"]["none"][0], *own["accuracy"][kind][1:]])
            (line,) = axes.plot((0, *strengths), values[:, 0], ".-", label=_plain(name))
            axes.fill_between((0, *strengths), *values[:, 1:].T, color=line.get_color(), alpha=0.2)
        axes.set(title=kind, xlabel=text, ylabel="accuracy", ylim=(0, 1.02))
    last = figure.axes[8]
    for name, own in found["networks"].items():
        accuracy = [row[0] for row in own["selective"]]
        last.plot(100 * np.array(SHARES), accuracy, ".-", label=_plain(name))
    last.set(title="without the least sure", xlabel="% set aside", ylabel="accuracy")
    figure.axes[0].legend(fontsize=8)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    _save(figure, path)


def save_sweep(
    path: Path,
    title: str,
    runs: Sequence[SweepRun],
    ranked: Sequence[RankedSettings],
    importance: Mapping[str, float],
    curves: Sequence[Sequence[Sequence[float]]],
) -> None:
    """Draw a sweep: loss by each setting, best loss by trial, importance, curves of the best.

    :param curves: validation losses by epoch, of the runs of the first of ``ranked``.
    """
    known = dict.fromkeys(name for each in ranked for name in each.settings)
    names = [name for name in known if len({str(r.settings.get(name)) for r in ranked}) > 1]
    panels = len(names) + 2 + bool(importance)
    rows = -(-panels // 3)
    figure = Figure(figsize=(13, 3.6 * rows), layout="constrained")
    figure.suptitle(f"Sweep {_plain(title)}: validation loss")
    axes = iter(figure.subplots(rows, 3, squeeze=False).flat)
    for name in names:
        _draw_setting(next(axes), name, ranked)
    by_trial: dict[int, list[float]] = {}
    for run in runs:
        if run.status == "finished" and run.loss is not None:
            by_trial.setdefault(run.trial, []).append(run.loss)
    losses = [np.mean(values) for values in by_trial.values()]
    history = next(axes)
    history.plot(list(by_trial), losses, "o", markersize=3, alpha=0.5, label="trial")
    history.step(list(by_trial), np.minimum.accumulate(losses), where="post", label="best so far")
    history.set(xlabel="trial", ylabel="validation loss")
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.legend()
    if importance:
        bars = next(axes)
        bars.barh([_plain(name) for name in importance], list(importance.values()))
        bars.set(xlabel="share of the variance (fANOVA)", ylim=(len(importance) - 0.5, -0.5))
    means = next(axes)
    labels = [settings_text(each.settings) for each in ranked]
    if max(map(len, labels)) > 40:
        labels = [f"rank {number + 1}" for number in range(len(ranked))]
    for label, histories in zip(labels, curves, strict=False):
        length = min(map(len, histories))
        values = np.array([losses[:length] for losses in histories])
        epochs = np.arange(1, length + 1)
        (line,) = means.plot(epochs, values.mean(0), label=_plain(label))
        if len(values) > 1:
            ends = values.mean(0) - values.std(0, ddof=1), values.mean(0) + values.std(0, ddof=1)
            means.fill_between(epochs, *ends, color=line.get_color(), alpha=0.2)
    means.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    means.set_title("mean, band: standard deviation")
    means.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_log(means.yaxis)
    if ranked[0].settings:
        means.legend(fontsize=7)
    for rest in axes:
        rest.set_axis_off()
    _save(figure, path)


def _draw_setting(axes: Any, name: str, ranked: Sequence[RankedSettings]) -> None:
    """Draw the mean loss of each of the settings by one of them."""
    values: list[Any] = [each.settings.get(name) for each in ranked]
    losses, errors = [each.mean for each in ranked], [each.error or 0 for each in ranked]
    floats = all(isinstance(value, float) for value in values)
    kinds = sorted(set(map(str, values)), key=lambda text: (len(text), text))
    places = values if floats else [kinds.index(str(value)) for value in values]
    axes.errorbar(places, losses, errors, fmt="o", markersize=4, alpha=0.6, capsize=2)
    axes.set(xlabel=_plain(name.removeprefix("set.")), ylabel="mean validation loss")
    if not floats:
        axes.set_xticks(range(len(kinds)), map(_plain, kinds))
        axes.margins(x=0.15)
    elif min(values) > 0:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
        if len(set(values)) <= 6:
            axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
            axes.xaxis.set_minor_formatter(NullFormatter())


def _plain_log(axis: Any) -> None:
    """Label a logarithmic axis with 0.02, 0.05, 0.1, …; powers of ten take 0.1 s to draw."""
    low, high = axis.get_view_interval()
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def _plain(text: str) -> str:
    """Return text of a file so that it is drawn as it is: no formulas, no line breaks."""
    return escaped(text).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file name in Chinese, say
        figure.savefig(temporary, format="png", dpi=120)
