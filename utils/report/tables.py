"""Aligned tables as plain text and Markdown, and the text of their cells."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence

from utils.errors import escaped
from utils.records.evaluation import EvaluationRecord, class_names
from utils.records.provenance import flat


def align(rows: Sequence[Sequence[str]], right: Collection[int] = (), gap: str = "  ") -> list[str]:
    """Return a line per row, with each column padded to its longest cell.

    :param right: the columns that are aligned to the right, by number from 0.

    >>> align([("loss", "9.5"), ("accuracy", "10.25")], right=[1])
    ['loss        9.5', 'accuracy  10.25']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is aligned as plain text too.

    >>> print(markdown(("network", "errors"), [("SMLP", "132")]))
    | network | errors |
    | ------- | ------ |
    | SMLP    | 132    |
    """
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    rule = ["-" * max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    # The empty outer columns give each line its outer bars.
    cells = [("", *line, "") for line in (lines[0], rule, *lines[1:])]
    return "\n".join(line.lstrip() for line in align(cells, gap=" | "))


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as CSV, with a column for each name in any of them; ``None`` is empty."""
    text = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace").decode()  # surrogates


#: Names of metrics in text, where replacing the underscores is not enough.
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
    """Return the name of a metric in text: ``balanced accuracy`` for ``balanced_accuracy``."""
    return TITLES.get(metric, metric.replace("_", " "))


def number(value: float | None) -> str:
    """Return a number with four decimals; a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if value < 10_000 else f"{value:.4g}"


def interval(ends: Sequence[float | None]) -> str:
    """Return an interval such as ``0.9733 to 0.9809``; a dash if it is undefined."""
    low, high = map(number, ends)
    return "-" if "-" in (low, high) else f"{low} to {high}"


def with_deviation(mean: float | None, deviation: float | None) -> str:
    """Return ``0.9754 ± 0.0021``, or the mean alone for a single run."""
    return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def percent(probability: float) -> str:
    """Return a percentage with one decimal; ``100.0 %`` and ``0.0 %`` only for exactly 1 and 0."""
    if 0 < probability < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < probability < 1 else f"{100 * probability:.1f} %"


def confused_pairs(record: EvaluationRecord) -> list[tuple[str, str, int, float]]:
    """Return the errors as (true class, predicted class, images, their share of the true class's).

    The most frequent pair is first.
    """
    names = class_names(record)
    pairs = [
        (true, predicted, count, count / sum(row))
        for true, row in zip(names, record["confusion"], strict=True)
        for predicted, count in zip(names, row, strict=True)
        if true != predicted and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def describe_settings(settings: Mapping[str, object]) -> str:
    """Return a run's settings in one line, without those that are off."""
    used = (
        f"{name.split('.')[-1]} {value}"
        for name, value in flat(settings)
        if value is not None and not (isinstance(value, float) and value == 0)
    )
    return escaped("; ".join(used))
