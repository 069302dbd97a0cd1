"""Tables as Markdown, aligned so that they can be read as text too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.record import flat


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns are padded to the width of their longest cell.

    >>> print(markdown(("network", "wrong"), [("SMLP", "132")]))
    | network | wrong |
    | ------- | ----- |
    | SMLP    | 132   |
    """
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


#: Of metrics, where the underscores of their names are not all that text lacks.
TITLES = {
    "f1": "F1",
    "weighted_f1": "weighted F1",
    "cross_entropy": "cross-entropy",
    "brier": "Brier score",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}


def title(metric: str) -> str:
    """How text names a metric: ``balanced_accuracy`` is ``balanced accuracy``."""
    return TITLES.get(metric, metric.replace("_", " "))


def interval(ends: Sequence[float | None]) -> str:
    """``0.9733 to 0.9809``; a dash where there is none."""
    low, high = map(number, ends)
    return "-" if "-" in (low, high) else f"{low} to {high}"


def number(value: float | None) -> str:
    """Four digits after the point; a dash where it is undefined."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if value < 10_000 else f"{value:.4g}"


def confused(record: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Of an evaluation: digit, what it was taken for, how often; the most frequent first."""
    digits = record["classes"]
    pairs = [
        (digit, other, count)
        for digit, row in zip(digits, record["confusion"], strict=True)
        for other, count in zip(digits, row, strict=True)
        if digit != other and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def settings_text(settings: Mapping[str, Any]) -> str:
    """A training's settings in a line, without those that are off."""
    known = ((name.split(".")[-1], value) for name, value in flat(settings))
    return "; ".join(
        f"{name} {value}"
        for name, value in known
        if value is not None and not (isinstance(value, float) and value == 0)
    )


def percent(probability: float) -> str:
    """With one digit after the point, but ``100 %`` only for what is certain."""
    return "> 99.9 %" if 0.999 < probability < 1 else f"{100 * probability:.1f} %"
