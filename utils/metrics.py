"""Metrics of predictions against the truth, by scikit-learn's definitions.

``y_true`` and ``y_pred`` are arrays (N,) of digits. Averages run over ``classes``, the digits of
the dataset, whether or not they are predicted; without ``classes``, over the digits that occur in
either array. ``macro`` averages count each class once, ``weighted`` ones by its number of images.

Metrics of probabilities take ``log_probabilities``, an array (N, C) of natural logarithms, and
``classes``, an array (N,) of the true columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """The share of predictions that are right, in [0, 1].

    >>> accuracy([4, 4, 9, 9], [4, 9, 9, 9])
    0.75
    """
    return float(sklearn_metrics.accuracy_score(y_true, y_pred))


def precision(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: Sequence[int] | None = None,
    average: str = "macro",
) -> float:
    """Mean over the classes of (right among those predicted); 0 for a class never predicted."""
    return float(
        sklearn_metrics.precision_score(
            y_true, y_pred, labels=classes, average=average, zero_division=0
        )
    )


def recall(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: Sequence[int] | None = None,
    average: str = "macro",
) -> float:
    """Mean over the classes of (right among those true); 0 for a class that does not occur.

    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 9])
    0.75
    >>> recall([4, 4, 9, 9], [4, 9, 9, 9], classes=[4, 5, 9])
    0.5
    """
    return float(
        sklearn_metrics.recall_score(
            y_true, y_pred, labels=classes, average=average, zero_division=0
        )
    )


def f1(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: Sequence[int] | None = None,
    average: str = "macro",
) -> float:
    """Mean over the classes of the harmonic mean of precision and recall, in [0, 1]."""
    return float(
        sklearn_metrics.f1_score(y_true, y_pred, labels=classes, average=average, zero_division=0)
    )


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean recall of the classes that occur in ``y_true``.

    It differs from :func:`recall` only on a test set that lacks a class: the recall of a class
    without images is undefined, and scikit-learn leaves it out here.
    """
    # balanced_accuracy_score gives the same number, and a warning where a class is only predicted.
    return recall(y_true, y_pred, classes=np.unique(y_true).tolist())


def mse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean squared difference of the digits, in digits squared."""
    return float(sklearn_metrics.mean_squared_error(*_quantities(y_true, y_pred)))


def rmse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Square root of :func:`mse`."""
    return float(sklearn_metrics.root_mean_squared_error(*_quantities(y_true, y_pred)))


def mae(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean absolute difference of the digits, in digits."""
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
    """The eight metrics that treat digits as names, in [0, 1]; averages are macro unless said."""
    return {
        "accuracy": accuracy(y_true, y_pred),
        "balanced_accuracy": balanced_accuracy(y_true, y_pred),
        "precision": precision(y_true, y_pred, classes),
        "recall": recall(y_true, y_pred, classes),
        "f1": f1(y_true, y_pred, classes),
        "weighted_precision": precision(y_true, y_pred, classes, "weighted"),
        "weighted_recall": recall(y_true, y_pred, classes, "weighted"),
        "weighted_f1": f1(y_true, y_pred, classes, "weighted"),
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


def image_losses(log_probabilities: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """The two scores whose mean over the images is a metric: arrays (N,), the lower the better.

    ``cross_entropy`` is -ln of the true class's probability, from 0; ``brier`` is the squared
    distance of the probabilities from the truth (Brier, 1950), from 0 to 2.
    """
    rows = np.arange(len(classes))
    truth = np.zeros_like(log_probabilities)
    truth[rows, classes] = 1
    return {
        "cross_entropy": -log_probabilities[rows, classes],
        "brier": np.square(np.exp(log_probabilities) - truth).sum(1),
    }


#: Bins of confidence, as Guo et al. (2017), "On Calibration of Modern Neural Networks", have them.
CALIBRATION_BINS = 15


def confidence_gaps(
    log_probabilities: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each image its bin, 0 … 14, and its confidence less 1 if it is right, less 0 if wrong.

    Confidence is the probability of the class that is predicted. Bin b holds the confidences above
    b / 15 and up to (b + 1) / 15.
    """
    confidence = np.exp(log_probabilities.max(1))
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    right = log_probabilities.argmax(1) == classes
    return bins.clip(0, CALIBRATION_BINS - 1), confidence - right


def expected_calibration_error(bins: np.ndarray, gaps: np.ndarray) -> float:
    """Mean over the images of ``abs(accuracy - mean confidence)`` of their bin, in [0, 1]."""
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / len(gaps))


def calibration(log_probabilities: np.ndarray, classes: np.ndarray) -> list[dict[str, Any]]:
    """A row for each bin that is not empty: its edges, its images, how many of them are right, and
    their mean confidence."""
    bins, _ = confidence_gaps(log_probabilities, classes)
    confidence = np.exp(log_probabilities.max(1))
    right = log_probabilities.argmax(1) == classes
    rows = []
    for number in np.unique(bins).tolist():
        inside = bins == number
        rows.append(
            {
                "above": number / CALIBRATION_BINS,
                "up_to": (number + 1) / CALIBRATION_BINS,
                "images": int(inside.sum()),
                "right": int(right[inside].sum()),
                "confidence": float(confidence[inside].mean()),
            }
        )
    return rows
