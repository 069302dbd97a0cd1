"""Every number of an evaluation, from the predicted probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.records.evaluation import METRICS, Results, SeriesRecord
from utils.statistics import intervals, probabilities

OF_CLASS = ("precision", "recall", "f1")
#: Fewer clusters give a warning: with 30 of them 90 of 100 intervals cover the accuracy.
FEW = 30
#: Who filled in the forms of a series of NIST's, as Grother's manual of Special Database 19 has it.
SERIES = dict.fromkeys(range(4), "census employees") | {4: "high-school students"}


def measure(
    log_probabilities: np.ndarray,
    classes: np.ndarray,
    digits: Sequence[int],
    writers: np.ndarray | None = None,
    series: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Results:
    """Compute every number of an evaluation, with its interval.

    :param log_probabilities: natural logarithms (N, C); column k is ``digits[k]``.
    :param classes: the true columns (N,).
    :param writers: who wrote each image (N,), and the ``series`` of forms it is from (N,).
    :param names: of the classes, where they are no digits, whose distance means nothing.
    """
    clusters = intervals.Clusters.of(writers, len(classes))
    predicted = log_probabilities.argmax(1)
    confusion = np.zeros((len(digits), len(digits)), dtype=np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    correct = int(confusion.trace())
    losses = probabilities.image_losses(log_probabilities, classes)
    bins, gaps = probabilities.confidence_gaps(log_probabilities, classes)

    measured = intervals.metrics_from_confusion(confusion, digits)
    values = {name: array.tolist() for name, array in measured.items()}
    confusions = clusters.resample_confusion(classes, predicted, len(digits))
    resampled = intervals.metrics_from_confusion(confusions, digits)
    distances = METRICS["label_distance"]
    if names:
        resampled = {name: each for name, each in resampled.items() if name not in distances}
        distances = ()
    ends: dict[str, Any] = {
        name: intervals.percentile_interval(np.moveaxis(array, 0, -1)).tolist()
        for name, array in resampled.items()
    }
    # The weighted recall is the accuracy by another name.
    of_accuracy = (correct, len(classes), resampled["accuracy"])
    ends["accuracy"] = ends["weighted_recall"] = list(intervals.proportion_interval(*of_accuracy))
    means = clusters.resample_means(np.stack([*losses.values()]))
    ends |= dict(zip(losses, intervals.percentile_interval(means.T).tolist(), strict=True))
    calibration_error = intervals.calibration_error_interval(bins, gaps, clusters)
    ends["expected_calibration_error"] = list(calibration_error)
    ends_of_class = {name: ends.pop(f"class_{name}") for name in OF_CLASS}
    calibration = probabilities.calibration(log_probabilities, classes)
    for cell in calibration:
        cell["low"], cell["high"] = intervals.wilson(cell["right"], cell["images"])
    return {
        "images": len(classes),
        "correct": correct,
        "metrics": {name: values[name] for name in METRICS["metrics"]},
        "probabilities": {
            **{name: float(each.mean()) for name, each in losses.items()},
            "expected_calibration_error": probabilities.expected_calibration_error(bins, gaps),
        },
        "label_distance": {name: values[name] for name in distances},
        "intervals": ends,
        "clusters": {
            "kind": clusters.kind,
            "count": clusters.count,
            "design_effect": intervals.design_effect(*of_accuracy),
            "wilson": list(intervals.wilson(correct, len(classes))),
        },
        "series": [] if series is None else _by_series(series, classes != predicted),
        "per_class": _by_class(digits, values, ends_of_class, confusion, resampled["class_recall"]),
        "confusion": confusion.tolist(),
        "calibration": calibration,
        "warnings": _warnings(confusion, names or digits, clusters),
    }


def _by_class(
    digits: Sequence[int],
    values: Mapping[str, Any],
    ends: Mapping[str, Any],
    confusion: np.ndarray,
    recalls: np.ndarray,
) -> list[Any]:
    """Return the metrics of each class with their intervals; ``recalls`` are resampled, (R, C)."""
    rows = []
    for column, digit in enumerate(digits):
        correct, support = int(confusion[column, column]), int(confusion[column].sum())
        row: dict[str, Any] = {"digit": digit}
        row |= {name: values[f"class_{name}"][column] for name in OF_CLASS}
        row |= {"support": support}
        row["intervals"] = {name: found[column] for name, found in ends.items()}
        recall = intervals.proportion_interval(correct, support, recalls[:, column])
        row["intervals"]["recall"] = list(recall)
        rows.append(row)
    return rows


def _by_series(series: np.ndarray, wrong: np.ndarray) -> list[SeriesRecord]:
    """Return images and errors of each series."""
    rows: list[SeriesRecord] = []
    for number in np.unique(series).tolist():
        of_series, by = wrong[series == number], SERIES.get(number, "unknown")
        counts = len(of_series), int(of_series.sum())
        rows.append({"series": number, "by": by, "images": counts[0], "errors": counts[1]})
    return rows


def _warnings(
    confusion: np.ndarray, digits: Sequence[int | str], clusters: intervals.Clusters
) -> list[str]:
    """Return warnings about degenerate predictions and test sets."""
    found = []
    if clusters.count < FEW:
        found.append(
            f"the test set is of {clusters.count} {clusters.kind}, too few: the intervals are too "
            "narrow"
        )
    predicted = [digit for digit, count in zip(digits, confusion.sum(0), strict=True) if count]
    if len(predicted) == 1:
        found.append(f"every prediction is {predicted[0]}: the network predicts a single class")
    for digit, row, correct in zip(digits, confusion, confusion.diagonal(), strict=True):
        if row.sum() == 0:
            found.append(f"the test set has no {digit}; its recall counts as 0")
        elif correct == 0:
            found.append(f"none of the {row.sum()} images of a {digit} is recognized (recall 0)")
    return found
