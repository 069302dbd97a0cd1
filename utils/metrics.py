"""Metrics of predictions against the truth, by scikit-learn's definitions.

``y_true`` and ``y_pred`` are arrays (N,) of digits. The macro averages run over ``classes``, the
digits of the dataset, whether or not they are predicted; without ``classes``, over the digits that
occur in either array.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """The share of predictions that are right, in [0, 1]."""
    return float(sklearn_metrics.accuracy_score(y_true, y_pred))


def precision(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Mean over the classes of (right among those predicted); 0 for a class never predicted."""
    return float(
        sklearn_metrics.precision_score(
            y_true, y_pred, labels=classes, average="macro", zero_division=0
        )
    )


def recall(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Mean over the classes of (right among those true); 0 for a class that does not occur."""
    return float(
        sklearn_metrics.recall_score(
            y_true, y_pred, labels=classes, average="macro", zero_division=0
        )
    )


def f1(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Mean over the classes of the harmonic mean of precision and recall."""
    return float(
        sklearn_metrics.f1_score(y_true, y_pred, labels=classes, average="macro", zero_division=0)
    )


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean recall of the classes that occur in ``y_true``.

    It differs from :func:`recall` only on a test set that lacks a class: the recall of a class
    without images is undefined, and scikit-learn leaves it out here.
    """
    # balanced_accuracy_score gives the same number, and a warning where a class is only predicted.
    return recall(y_true, y_pred, classes=np.unique(y_true).tolist())


def mse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean squared difference of the digits."""
    return float(sklearn_metrics.mean_squared_error(*_quantities(y_true, y_pred)))


def rmse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Square root of :func:`mse`."""
    return float(sklearn_metrics.root_mean_squared_error(*_quantities(y_true, y_pred)))


def mae(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean absolute difference of the digits."""
    return float(sklearn_metrics.mean_absolute_error(*_quantities(y_true, y_pred)))


def r2(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Coefficient of determination; NaN for fewer than two samples, where it is undefined."""
    if len(np.asarray(y_true)) < 2:
        return float("nan")
    return float(sklearn_metrics.r2_score(*_quantities(y_true, y_pred)))


def _quantities(*labels: ArrayLike) -> tuple[np.ndarray, ...]:
    # Differences of uint8 labels would wrap around.
    return tuple(np.asarray(array, dtype=np.float64) for array in labels)


def classification(
    y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int]
) -> dict[str, float]:
    """The five metrics that treat digits as names, all in [0, 1]."""
    return {
        "accuracy": accuracy(y_true, y_pred),
        "balanced_accuracy": balanced_accuracy(y_true, y_pred),
        "precision": precision(y_true, y_pred, classes),
        "recall": recall(y_true, y_pred, classes),
        "f1": f1(y_true, y_pred, classes),
    }


def label_distance(y_true: ArrayLike, y_pred: ArrayLike) -> dict[str, float]:
    """The four metrics that treat digits as quantities, for comparison with earlier tables.

    A 4 taken for a 9 counts 25 times (MSE) or 5 times (MAE) as much as one taken for a 5, though it
    is the easier mistake.
    """
    return {
        "mse": mse(y_true, y_pred),
        "rmse": rmse(y_true, y_pred),
        "mae": mae(y_true, y_pred),
        "r2": r2(y_true, y_pred),
    }


def per_class(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int]) -> list[dict[str, Any]]:
    """A row a class: digit, precision, recall, F1, support (the number of its images)."""
    columns = sklearn_metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=classes, zero_division=0
    )
    return [
        {
            "digit": int(digit),
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "support": int(n),
        }
        for digit, p, r, f, n in zip(classes, *columns, strict=True)
    ]
