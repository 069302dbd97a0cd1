"""Every metric against scikit-learn called directly, and against hand counts."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference

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
    assert metrics.accuracy(y_true, y_pred) == reference.accuracy_score(y_true, y_pred)
    for ours, theirs in (
        (metrics.precision, reference.precision_score),
        (metrics.recall, reference.recall_score),
        (metrics.f1, reference.f1_score),
    ):
        assert ours(y_true, y_pred, CLASSES) == theirs(y_true, y_pred, **macro)
    as_float = y_true.astype(float), y_pred.astype(float)
    assert metrics.mse(y_true, y_pred) == reference.mean_squared_error(*as_float)
    assert metrics.rmse(y_true, y_pred) == reference.root_mean_squared_error(*as_float)
    assert metrics.mae(y_true, y_pred) == reference.mean_absolute_error(*as_float)
    assert metrics.r2(y_true, y_pred) == reference.r2_score(*as_float)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("case", CASES)
def test_balanced_accuracy_agrees_with_scikit_learn(case):
    y_true, y_pred = CASES[case]
    expected = reference.balanced_accuracy_score(y_true, y_pred)
    assert metrics.balanced_accuracy(y_true, y_pred) == pytest.approx(expected, rel=1e-15)


def test_by_hand():
    # 4: 2 of 3 found, 1 false; 5: 1 of 2 found, 1 false; 6: no images, never predicted
    y_true, y_pred, classes = [4, 4, 4, 5, 5], [4, 4, 5, 5, 4], [4, 5, 6]
    assert metrics.accuracy(y_true, y_pred) == 3 / 5
    assert metrics.balanced_accuracy(y_true, y_pred) == pytest.approx((2 / 3 + 1 / 2) / 2)
    for metric in (metrics.precision, metrics.recall, metrics.f1):
        assert metric(y_true, y_pred, classes) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.mse(y_true, y_pred) == pytest.approx(2 / 5)
    assert metrics.rmse(y_true, y_pred) == pytest.approx(math.sqrt(2 / 5))
    assert metrics.mae(y_true, y_pred) == pytest.approx(2 / 5)
    # The squared deviations of y_true from 4.4 sum to 1.2.
    assert metrics.r2(y_true, y_pred) == pytest.approx(1 - 2 / 1.2)
    assert math.isnan(metrics.r2([4], [4]))


def test_uint8_differences_do_not_wrap_around():
    assert metrics.mae(np.array([0], np.uint8), np.array([9], np.uint8)) == 9


def test_r2_of_one_sample_is_nan():
    assert math.isnan(metrics.r2([4], [5]))


def test_default_classes_are_those_that_occur():
    y_true, y_pred = CASES["class without images"]
    expected = reference.f1_score(y_true, y_pred, average="macro", zero_division=0)
    assert metrics.f1(y_true, y_pred) == expected
