"""Metrics of predictions, as scikit-learn defines them.

``y_true`` and ``y_pred`` are arrays (N,) of digits. Macro averages count each class once, weighted
averages by its number of images. They run over ``classes``, the digits of the dataset, whether or
not they are predicted; without ``classes``, over the digits that occur in either array.
"""

from __future__ import annotations  # the documentation shows ArrayLike by this name

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the proportion of correct predictions, in [0, 1].

    >>> accuracy([4, 4, 9, 9], [4, 9, 9, 9])
    0.75
    """
    return float(sklearn_metrics.accuracy_score(y_true, y_pred))


def precision(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro precision, in [0, 1]; a class that is never predicted counts as 0."""
    return _macro(y_true, y_pred, classes)["precision"]


def recall(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro recall, in [0, 1]; a class without images counts as 0.

    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 9])
    0.75
    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 5, 9])
    0.5
    """
    return _macro(y_true, y_pred, classes)["recall"]


def f1(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro F1, the mean of the harmonic means of precision and recall, in [0, 1]."""
    return _macro(y_true, y_pred, classes)["f1"]


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean recall of the classes that occur in ``y_true``, in [0, 1].

    It differs from :func:`recall` only on a test set that lacks a class.
    """
    # balanced_accuracy_score gives the same number, and a warning where a class is only predicted.
    return recall(y_true, y_pred, classes=np.unique(y_true).tolist())


def mse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean squared difference of the digits, in digits squared."""
    return float(sklearn_metrics.mean_squared_error(*_as_floats(y_true, y_pred)))


def rmse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the square root of :func:`mse`, in digits."""
    return float(sklearn_metrics.root_mean_squared_error(*_as_floats(y_true, y_pred)))


def mae(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean absolute difference of the digits, in digits."""
    return float(sklearn_metrics.mean_absolute_error(*_as_floats(y_true, y_pred)))


def r2(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the coefficient of determination; NaN for one sample, where it is undefined."""
    if np.size(y_true) < 2:
        return float("nan")
    return float(sklearn_metrics.r2_score(*_as_floats(y_true, y_pred)))


def _macro(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None) -> dict[str, float]:
    """Return precision, recall and F1; of a class, 0 where they are undefined."""
    values = sklearn_metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=classes, average="macro", zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), map(float, values[:3]), strict=True))


def _as_floats(*labels: ArrayLike) -> tuple[np.ndarray, ...]:
    # Differences of uint8 labels would wrap around.
    return tuple(np.asarray(array, dtype=np.float64) for array in labels)
