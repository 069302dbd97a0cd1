"""Every metric against scikit-learn called directly, and against counts made by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference

from utils import metrics

random = np.random.default_rng(0)
CASES = {
    "random": (random.integers(4, 10, 500), random.integers(4, 10, 500)),
    "uint8": (
        random.integers(4, 10, 99).astype(np.uint8),
        random.integers(4, 10, 99).astype(np.uint8),
    ),
    "perfect": (np.arange(4, 10), np.arange(4, 10)),
    "one class predicted": (random.integers(4, 10, 100), np.full(100, 7)),
    "class never predicted": (np.array([4, 5, 6, 7, 8, 9]), np.array([4, 5, 6, 7, 8, 8])),
    "class absent from the truth": (np.array([4, 5, 5, 6]), np.array([4, 9, 5, 6])),
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
    # 4: 2 of 3 found, 1 false; 5: 1 of 2 found, 1 false; 6: never true, never predicted
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
        "r2": pytest.approx(1 - 2 / 1.2),  # the truth's squared deviations from 4.4 sum to 1.2
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


def test_digits_far_apart_do_not_wrap_around():
    assert metrics.mae(np.array([0], np.uint8), np.array([9], np.uint8)) == 9


def test_r2_of_one_sample_is_not_a_number():
    assert math.isnan(metrics.r2([4], [5]))


def test_default_classes_are_those_that_occur():
    y_true, y_pred = CASES["class absent from the truth"]
    expected = reference.f1_score(y_true, y_pred, average="macro", zero_division=0)
    assert metrics.f1(y_true, y_pred) == expected
