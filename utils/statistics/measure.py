"""Every number of an evaluation, from the predicted probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils import metrics
from utils.records.evaluation import Results
from utils.statistics import intervals


def measure(log_probabilities: np.ndarray, classes: np.ndarray, digits: Sequence[int]) -> Results:
    """Compute every number of an evaluation, with its interval.

    :param log_probabilities: natural logarithms (N, C); column k is ``digits[k]``.
    :param classes: the true columns (N,).
    """
    predicted = log_probabilities.argmax(1)
    y_true, y_pred = np.array(digits)[classes], np.array(digits)[predicted]
    confusion = np.zeros((len(digits), len(digits)), dtype=np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    correct = int(confusion.trace())
    losses = metrics.image_losses(log_probabilities, classes)
    bins, gaps = metrics.confidence_gaps(log_probabilities, classes)

    resampled = intervals.metrics_from_confusion(intervals.resample_confusion(confusion), digits)
    ends: dict[str, Any] = {
        name: intervals.percentile_interval(np.moveaxis(values, 0, -1)).tolist()
        for name, values in resampled.items()
    }
    # The weighted recall is the accuracy by another name.
    ends["accuracy"] = ends["weighted_recall"] = list(intervals.wilson(correct, len(classes)))
    ends |= {name: list(intervals.mean_interval(values)) for name, values in losses.items()}
    calibration_error = intervals.calibration_error_interval(bins, gaps, classes)
    ends["expected_calibration_error"] = list(calibration_error)
    of_class = {name: ends.pop(f"class_{name}") for name in ("precision", "recall", "f1")}
    per_class: list[Any] = metrics.per_class(y_true, y_pred, digits)
    for column, row in enumerate(per_class):
        row["intervals"] = {name: found[column] for name, found in of_class.items()}
        recall = intervals.wilson(int(confusion[column, column]), row["support"])
        row["intervals"]["recall"] = list(recall)
    calibration = metrics.calibration(log_probabilities, classes)
    for cell in calibration:
        cell["low"], cell["high"] = intervals.wilson(cell["right"], cell["images"])
    return {
        "images": len(classes),
        "correct": correct,
        "metrics": metrics.classification(y_true, y_pred, digits),
        "probabilities": {
            **{name: float(values.mean()) for name, values in losses.items()},
            "expected_calibration_error": metrics.expected_calibration_error(bins, gaps),
        },
        "label_distance": metrics.label_distance(y_true, y_pred),
        "intervals": ends,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "calibration": calibration,
        "warnings": _warnings(confusion, digits),
    }


def _warnings(confusion: np.ndarray, digits: Sequence[int]) -> list[str]:
    """Return warnings about degenerate predictions and test sets."""
    found = []
    predicted = [digit for digit, count in zip(digits, confusion.sum(0), strict=True) if count]
    if len(predicted) == 1:
        found.append(f"every prediction is {predicted[0]}: the network predicts a single class")
    for digit, row, correct in zip(digits, confusion, confusion.diagonal(), strict=True):
        if row.sum() == 0:
            found.append(f"the test set has no {digit}; its recall counts as 0")
        elif correct == 0:
            found.append(f"none of the {row.sum()} images of a {digit} is recognized (recall 0)")
    return found
