"""Metrics of predicted probabilities against scikit-learn, and by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference
from sklearn.calibration import calibration_curve

from utils.statistics import probabilities as ours

random = np.random.default_rng(0)


@pytest.fixture(params=["random", "confident", "absent class", "one image"])
def predicted(request):
    """Log probabilities (N, 4) and the true columns (N,)."""
    count = 1 if request.param == "one image" else 300
    logits = random.normal(size=(count, 4)) * (30 if request.param == "confident" else 2)
    classes = random.integers(0, 3 if request.param == "absent class" else 4, count)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), classes


def test_losses_agree_with_scikit_learn(predicted):
    log_probabilities, classes = predicted
    losses = ours.image_losses(log_probabilities, classes)
    probabilities = np.exp(log_probabilities)
    expected = reference.log_loss(classes, probabilities, labels=range(4))
    # scikit-learn clips probabilities at 2e-16
    clipped = np.minimum(losses["cross_entropy"], -math.log(np.finfo(float).eps))
    assert clipped.mean() == pytest.approx(expected)
    truth = np.eye(4)[classes]
    assert losses["brier"].mean() == pytest.approx(
        4 * reference.mean_squared_error(truth, probabilities)
    )


def test_calibration_agrees_with_scikit_learn(predicted):
    log_probabilities, classes = predicted
    confidence = np.exp(log_probabilities.max(1)).clip(0, 1)
    correct = log_probabilities.argmax(1) == classes
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    rows = ours.calibration(log_probabilities, classes)
    assert [row["right"] / row["images"] for row in rows] == pytest.approx(accuracy)
    assert [row["confidence"] for row in rows] == pytest.approx(mean)
    assert sum(row["images"] for row in rows) == len(classes)
    weights = np.array([row["images"] for row in rows]) / len(classes)
    found = ours.expected_calibration_error(*ours.confidence_gaps(log_probabilities, classes))
    assert found == pytest.approx((weights * np.abs(accuracy - mean)).sum())


def test_probabilities_by_hand():
    """Two images with confidence 0.8, one correct; one image with confidence 0.6, correct."""
    probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]])
    classes = np.array([0, 0, 0])
    losses = ours.image_losses(np.log(probabilities), classes)
    assert losses["cross_entropy"] == pytest.approx([-math.log(p) for p in (0.8, 0.2, 0.6)])
    assert losses["brier"] == pytest.approx([0.08, 1.28, 0.32])
    bins, gaps = ours.confidence_gaps(np.log(probabilities), classes)
    assert bins.tolist() == [11, 11, 8]  # 0.8 is the upper edge of bin 11, 0.6 of bin 8
    assert gaps == pytest.approx([-0.2, 0.8, -0.4])
    assert ours.expected_calibration_error(bins, gaps) == pytest.approx((0.6 + 0.4) / 3)
