"""Metrics of predicted probabilities.

``log_probabilities`` are natural logarithms (N, C), and ``classes`` the true columns (N,).
"""

from typing import Any

import numpy as np

#: Bins of confidence, as in Guo et al. (2017), "On Calibration of Modern Neural Networks".
CALIBRATION_BINS = 15


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
