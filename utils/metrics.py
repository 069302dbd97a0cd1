"""Metrics of predictions, as scikit-learn defines them.

``y_true`` and ``y_pred`` are arrays (N,) of digits. Macro averages count each class once, weighted
averages by its number of images. They run over ``classes``, the digits of the dataset, whether or
not they are predicted; without ``classes``, over the digits that occur in either array.

Metrics of probabilities take ``log_probabilities``, an array (N, C) of natural logarithms, and
``classes``, an array (N,) of the true columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

#: Bins of confidence, as in Guo et al. (2017), "On Calibration of Modern Neural Networks".
CALIBRATION_BINS = 15


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the proportion of correct predictions, in [0, 1].

    >>> accuracy([4, 4, 9, 9], [4, 9, 9, 9])
    0.75
    """
    return float(sklearn_metrics.accuracy_score(y_true, y_pred))


def precision(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro precision, in [0, 1]; a class that is never predicted counts as 0."""
    return _averages(y_true, y_pred, classes, "macro")["precision"]


def recall(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro recall, in [0, 1]; a class without images counts as 0.

    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 9])
    0.75
    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 5, 9])
    0.5
    """
    return _averages(y_true, y_pred, classes, "macro")["recall"]


def f1(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the macro F1, the mean of the harmonic means of precision and recall, in [0, 1]."""
    return _averages(y_true, y_pred, classes, "macro")["f1"]


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


def classification(
    y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int]
) -> dict[str, float]:
    """Return the eight metrics that treat digits as names, in [0, 1]."""
    weighted = _averages(y_true, y_pred, classes, "weighted")
    return {
        "accuracy": accuracy(y_true, y_pred),
        "balanced_accuracy": balanced_accuracy(y_true, y_pred),
        **_averages(y_true, y_pred, classes, "macro"),
        **{f"weighted_{name}": value for name, value in weighted.items()},
    }


def label_distance(y_true: ArrayLike, y_pred: ArrayLike) -> dict[str, float]:
    """Return the four metrics that treat digits as quantities, to compare with earlier tables."""
    return {metric.__name__: metric(y_true, y_pred) for metric in (mse, rmse, mae, r2)}


def per_class(y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and number of images (``support``) of each class."""
    scores = sklearn_metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=classes, zero_division=0
    )
    names = ("digit", "precision", "recall", "f1", "support")
    columns = (np.asarray(column).tolist() for column in (classes, *scores))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def image_losses(log_probabilities: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return two losses of each image, arrays (N,) whose means are metrics.

    ``cross_entropy`` is -ln of the true class's probability, from 0; ``brier`` is the squared
    distance of the probabilities from the one-hot truth (Brier, 1950), from 0 to 2.
    """
    rows = np.arange(len(classes))
    truth = np.zeros_like(log_probabilities)
    truth[rows, classes] = 1
    return {
        "cross_entropy": -log_probabilities[rows, classes],
        "brier": np.square(np.exp(log_probabilities) - truth).sum(1),
    }


def confidence_gaps(
    log_probabilities: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each image, 0 to 14, and its confidence minus its correctness (0 or 1).

    Confidence is the probability of the predicted class. Bin b holds the confidences above b / 15
    and up to (b + 1) / 15.
    """
    confidence = np.exp(log_probabilities.max(1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    correct = log_probabilities.argmax(1) == classes
    return bins.clip(0, CALIBRATION_BINS - 1), confidence - correct


def expected_calibration_error(bins: np.ndarray, gaps: np.ndarray) -> float:
    """Return the images' mean of ``abs(accuracy - mean confidence)`` of their bin, in [0, 1]."""
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / len(gaps))


def calibration(log_probabilities: np.ndarray, classes: np.ndarray) -> list[dict[str, Any]]:
    """Return the bins of confidence that hold images, see :func:`confidence_gaps`."""
    bins, _ = confidence_gaps(log_probabilities, classes)
    confidence = np.exp(log_probabilities.max(1))
    correct = log_probabilities.argmax(1) == classes
    return [
        {
            "above": number / CALIBRATION_BINS,
            "up_to": (number + 1) / CALIBRATION_BINS,
            "images": int((bins == number).sum()),
            "right": int(correct[bins == number].sum()),
            "confidence": float(confidence[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def _averages(
    y_true: ArrayLike, y_pred: ArrayLike, classes: Sequence[int] | None, average: str
) -> dict[str, float]:
    """Return precision, recall and F1; of a class, 0 where they are undefined."""
    values = sklearn_metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=classes, average=average, zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), map(float, values[:3]), strict=True))


def _as_floats(*labels: ArrayLike) -> tuple[np.ndarray, ...]:
    # Differences of uint8 labels would wrap around.
    return tuple(np.asarray(array, dtype=np.float64) for array in labels)
