"""Every metric against scikit-learn called directly, and against hand counts."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference
from sklearn.calibration import calibration_curve

from utils import metrics

random = np.random.default_rng(0)
CASES: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "random": (random.integers(4, 10, 500), random.integers(4, 10, 500)),
    "uint8": (
        random.integers(4, 10, 99).astype(np.uint8),
        random.integers(4, 10, 99).astype(np.uint8),
    ),
    "perfect": (np.arange(4, 10), np.arange(4, 10)),
    "one class predicted": (random.integers(4, 10, 100), np.full(100, 7)),
    "class never predicted": (np.array([4, 5, 6, 7, 8, 9]), np.array([4, 5, 6, 7, 8, 8])),
    "class without images": (np.array([4, 5, 5, 6]), np.array([4, 9, 5, 6])),
    "one class in all": (np.full(8, 5), np.full(8, 5)),
    "two samples": (np.array([4, 9]), np.array([9, 4])),
}
CLASSES = [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("case", CASES)
def test_agree_with_scikit_learn(case):
    y_true, y_pred = CASES[case]
    macro = {"labels": CLASSES, "average": "macro", "zero_division": 0}
    found = metrics.classification(y_true, y_pred, CLASSES)
    assert found["accuracy"] == reference.accuracy_score(y_true, y_pred)
    assert found["precision"] == reference.precision_score(y_true, y_pred, **macro)
    assert found["recall"] == reference.recall_score(y_true, y_pred, **macro)
    assert found["f1"] == reference.f1_score(y_true, y_pred, **macro)
    weighted = macro | {"average": "weighted"}
    assert found["weighted_precision"] == reference.precision_score(y_true, y_pred, **weighted)
    assert found["weighted_recall"] == reference.recall_score(y_true, y_pred, **weighted)
    assert found["weighted_f1"] == reference.f1_score(y_true, y_pred, **weighted)
    distance = metrics.label_distance(y_true, y_pred)
    as_float = y_true.astype(float), y_pred.astype(float)
    assert distance["mse"] == reference.mean_squared_error(*as_float)
    assert distance["rmse"] == pytest.approx(math.sqrt(distance["mse"]), rel=1e-15)
    assert distance["mae"] == reference.mean_absolute_error(*as_float)
    assert distance["r2"] == reference.r2_score(*as_float)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("case", CASES)
def test_balanced_accuracy_agrees_with_scikit_learn(case):
    y_true, y_pred = CASES[case]
    expected = reference.balanced_accuracy_score(y_true, y_pred)
    assert metrics.balanced_accuracy(y_true, y_pred) == pytest.approx(expected, rel=1e-15)


def test_by_hand():
    # 4: 2 of 3 found, 1 false; 5: 1 of 2 found, 1 false; 6: no images, never predicted
    y_true, y_pred = [4, 4, 4, 5, 5], [4, 4, 5, 5, 4]
    found = metrics.classification(y_true, y_pred, [4, 5, 6])
    assert found["accuracy"] == 3 / 5
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["precision"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.label_distance(y_true, y_pred) == {
        "mse": pytest.approx(2 / 5),
        "rmse": pytest.approx(math.sqrt(2 / 5)),
        "mae": pytest.approx(2 / 5),
        "r2": pytest.approx(1 - 2 / 1.2),  # the squared deviations of y_true from 4.4 sum to 1.2
    }
    assert metrics.per_class(y_true, y_pred, [4, 5, 6]) == [
        {
            "digit": 4,
            "precision": pytest.approx(2 / 3),
            "recall": pytest.approx(2 / 3),
            "f1": pytest.approx(2 / 3),
            "support": 3,
        },
        {"digit": 5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        {"digit": 6, "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    ]


@pytest.fixture(params=["random", "confident", "absent class", "one image"])
def predicted(request):
    """Log probabilities (N, 4) and the true columns (N,)."""
    count = 1 if request.param == "one image" else 300
    logits = random.normal(size=(count, 4)) * (30 if request.param == "confident" else 2)
    classes = random.integers(0, 3 if request.param == "absent class" else 4, count)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), classes


def test_losses_agree_with_scikit_learn(predicted):
    log_probabilities, classes = predicted
    losses = metrics.image_losses(log_probabilities, classes)
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
    rows = metrics.calibration(log_probabilities, classes)
    assert [row["right"] / row["images"] for row in rows] == pytest.approx(accuracy)
    assert [row["confidence"] for row in rows] == pytest.approx(mean)
    assert sum(row["images"] for row in rows) == len(classes)
    weights = np.array([row["images"] for row in rows]) / len(classes)
    found = metrics.expected_calibration_error(*metrics.confidence_gaps(log_probabilities, classes))
    assert found == pytest.approx((weights * np.abs(accuracy - mean)).sum())


def test_probabilities_by_hand():
    """Two images with confidence 0.8, one correct; one image with confidence 0.6, correct."""
    probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]])
    classes = np.array([0, 0, 0])
    losses = metrics.image_losses(np.log(probabilities), classes)
    assert losses["cross_entropy"] == pytest.approx([-math.log(p) for p in (0.8, 0.2, 0.6)])
    assert losses["brier"] == pytest.approx([0.08, 1.28, 0.32])
    bins, gaps = metrics.confidence_gaps(np.log(probabilities), classes)
    assert bins.tolist() == [11, 11, 8]  # 0.8 is the upper edge of bin 11, 0.6 of bin 8
    assert gaps == pytest.approx([-0.2, 0.8, -0.4])
    assert metrics.expected_calibration_error(bins, gaps) == pytest.approx((0.6 + 0.4) / 3)


def test_uint8_differences_do_not_wrap_around():
    assert metrics.mae(np.array([0], np.uint8), np.array([9], np.uint8)) == 9


def test_r2_of_one_sample_is_nan():
    assert math.isnan(metrics.r2([4], [5]))


def test_default_classes_are_those_that_occur():
    y_true, y_pred = CASES["class without images"]
    expected = reference.f1_score(y_true, y_pred, average="macro", zero_division=0)
    assert metrics.f1(y_true, y_pred) == expected
