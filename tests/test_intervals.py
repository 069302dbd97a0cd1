"""Intervals and tests against SciPy, scikit-learn, worked examples and hand counts."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import precision_recall_fscore_support
from test_metrics import CASES, CLASSES

from utils import metrics
from utils.statistics import intervals
from utils.statistics.probabilities import expected_calibration_error

random = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (1, 1), (0, 7), (7, 7), (81, 263), (5711, 5843), (1516, 1517)]
)
def test_wilson_agrees_with_scipy(correct, count):
    expected = scipy.stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert intervals.wilson(correct, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_reproduces_published_examples():
    # Newcombe (1998), table I, method 3: 81 of 263, and 0 of 20
    assert intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0.0000, 0.1611), abs=5e-5)
    assert intervals.wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (1, 1), (5, 5), (0, 12), (3, 12), (59, 6), (121, 59)]
)
def test_mcnemar_is_the_binomial_test(first, second):
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1
    assert intervals.mcnemar(first, second) == pytest.approx(expected, rel=1e-12)
    assert intervals.mcnemar(first, second) == pytest.approx(exact(first, second), rel=1e-12)
    assert intervals.mcnemar(second, first) == intervals.mcnemar(first, second)


def exact(first, second):
    """Return the p-value by rational arithmetic."""
    count = first + second
    tail = sum(math.comb(count, k) for k in range(min(first, second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def test_mcnemar_by_hand_and_for_many_images():
    # 1 and 5 of 6: P(0 or 1 heads in 6 throws) = 7/64, both sides
    assert intervals.mcnemar(1, 5) == pytest.approx(14 / 64, rel=1e-15)
    assert intervals.mcnemar(2900, 2943) == pytest.approx(
        scipy.stats.binomtest(2900, 5843).pvalue, rel=1e-10
    )
    assert intervals.mcnemar(0, 900) == pytest.approx(exact(0, 900), rel=1e-12)
    assert 0 < intervals.mcnemar(0, 900) < 1e-260
    assert intervals.mcnemar(2, 5000) == 0


def test_holm_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, raised to the value before it
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.9]) == [1.0, 1.0]
    assert intervals.holm([0.02]) == [0.02]
    assert intervals.holm([]) == []


def test_mean_agrees_with_scipys_standard_error():
    values = random.exponential(size=400)
    expected = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    assert intervals.mean_interval(values) == pytest.approx(expected)
    assert intervals.mean_interval(np.array([0.0, 0.0, 0.0, 1.0]))[0] == 0
    assert all(map(math.isnan, intervals.mean_interval(np.ones(1))))


def confusion_of(y_true, y_pred):
    found = np.zeros((6, 6), dtype=int)
    np.add.at(found, (np.asarray(y_true) - 4, np.asarray(y_pred) - 4), 1)
    return found


@pytest.mark.parametrize("case", CASES)
def test_metrics_from_confusion_agree_with_scikit_learn(case):
    y_true, y_pred = CASES[case]
    found = intervals.metrics_from_confusion(confusion_of(y_true, y_pred), CLASSES)
    names = ("precision", "recall", "f1")
    expected = {"accuracy": metrics.accuracy(y_true, y_pred)}
    expected["balanced_accuracy"] = metrics.balanced_accuracy(y_true, y_pred)
    for average, prefix in (("macro", ""), ("weighted", "weighted_"), (None, "class_")):
        scores = precision_recall_fscore_support(
            y_true, y_pred, labels=CLASSES, average=average, zero_division=0
        )
        expected |= {
            f"{prefix}{name}": score for name, score in zip(names, scores[:3], strict=True)
        }
    for metric in (metrics.mse, metrics.rmse, metrics.mae, metrics.r2):
        expected[metric.__name__] = metric(y_true, y_pred)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_metrics_of_stacked_confusions_equal_those_of_each():
    many = random.integers(0, 9, (50, 6, 6))
    together = intervals.metrics_from_confusion(many, CLASSES)
    for number, confusion in enumerate(many):
        for name, value in intervals.metrics_from_confusion(confusion, CLASSES).items():
            assert together[name][number] == pytest.approx(value)


def test_resampled_distribution_by_hand():
    """Two images of one class, one correct; three of another, one correct: 3 x 4 outcomes."""
    draws = intervals.resample_confusion(np.array([[1, 1], [2, 1]]), resamples=40_000)
    assert (draws.sum(2) == [2, 3]).all()
    for (first, p_first), (second, p_second) in product(
        [(0, 1 / 4), (1, 1 / 2), (2, 1 / 4)], [(0, 8 / 27), (1, 12 / 27), (2, 6 / 27), (3, 1 / 27)]
    ):
        found = ((draws[:, 0, 0] == first) & (draws[:, 1, 1] == second)).mean()
        expected = p_first * p_second
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))
    assert np.array_equal(
        draws, intervals.resample_confusion(np.array([[1, 1], [2, 1]]), resamples=40_000)
    )


def test_bootstrap_agrees_with_drawing_single_images():
    """The reference draws images one by one within each class and uses scikit-learn."""
    y_true = random.integers(4, 10, 300)
    y_pred = np.where(random.random(300) < 0.8, y_true, random.integers(4, 10, 300))
    drawn = intervals.metrics_from_confusion(
        intervals.resample_confusion(confusion_of(y_true, y_pred)), CLASSES
    )
    by_hand = []
    for _ in range(600):
        rows = np.concatenate([random.choice(own, len(own)) for own in rows_by_class(y_true)])
        by_hand.append(metrics.f1(y_true[rows], y_pred[rows], CLASSES))
    assert drawn["f1"].mean() == pytest.approx(np.mean(by_hand), abs=0.004)
    assert drawn["f1"].std() == pytest.approx(np.std(by_hand), rel=0.12)
    assert intervals.percentile_interval(drawn["f1"]) == pytest.approx(
        np.quantile(by_hand, [0.025, 0.975]), abs=0.012
    )


def rows_by_class(classes):
    return [np.flatnonzero(classes == number) for number in np.unique(classes)]


def test_difference_agrees_with_scipys_paired_bootstrap():
    classes = np.zeros(400, dtype=int)  # one class: SciPy does not stratify
    first, second = random.random(400) < 0.9, random.random(400) < 0.8
    found = intervals.difference_interval(first[None], second[None], classes)
    expected = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.004)


def test_difference_draws_images_within_classes():
    """One class is all correct, the other all wrong: within the classes nothing varies."""
    correct = np.repeat([True, False], 50)
    classes = np.repeat([0, 1], 50)
    none = np.zeros((1, 100), dtype=bool)
    assert intervals.difference_interval(correct[None], none, classes) == (0.5, 0.5)
    low, high = intervals.difference_interval(correct[None], none, np.zeros(100))
    assert low < 0.42 and high > 0.58


def test_difference_of_several_seeds():
    """Two seeds that differ a lot: most of the width comes from which seeds are drawn."""
    classes = np.zeros(1000, dtype=int)
    seeds = np.stack([random.random(1000) < 0.9, random.random(1000) < 0.5])
    zero = np.zeros((1, 1000), dtype=bool)
    low, high = intervals.difference_interval(seeds, zero, classes)
    assert low == pytest.approx(0.5, abs=0.05) and high == pytest.approx(0.9, abs=0.03)
    assert intervals.accuracy_interval(seeds, classes) == pytest.approx((low, high), abs=0.01)
    same = np.stack([seeds[0], seeds[0]])
    once = intervals.accuracy_interval(seeds[:1], classes)
    assert intervals.accuracy_interval(same, classes) == pytest.approx(once, abs=0.005)
    assert once == pytest.approx(intervals.wilson(seeds[0].sum(), 1000), abs=0.005)


def test_calibration_error_agrees_with_drawing_single_images():
    classes = random.integers(0, 3, 600)
    confidence = random.uniform(0.4, 1, 600)
    gaps = confidence - (random.random(600) < confidence - np.array([0.4, 0.0, -0.2])[classes])
    bins = (confidence * 15).astype(int)
    by_hand = []
    for _ in range(1000):
        rows = np.concatenate([random.choice(own, len(own)) for own in rows_by_class(classes)])
        by_hand.append(expected_calibration_error(bins[rows], gaps[rows]))
    low, high = np.quantile(by_hand, [0.025, 0.975])
    measured = expected_calibration_error(bins, gaps)
    found = intervals.calibration_error_interval(bins, gaps, classes)
    assert found == pytest.approx((2 * measured - high, 2 * measured - low), abs=0.008)
    # One class is always correct, the other always wrong, at equal confidence: nothing varies.
    sure = np.repeat([0.2, -0.8], 50)
    fixed = intervals.calibration_error_interval(np.zeros(100, int), sure, np.repeat([0, 1], 50))
    assert fixed == pytest.approx((0.3, 0.3))
    # The interval contains the measured value, even if the gaps are pure noise.
    low, high = intervals.calibration_error_interval(bins, random.choice([-0.5, 0.5], 600), classes)
    assert low < high
    perfect = intervals.calibration_error_interval(bins, np.zeros(600), classes)
    assert perfect == (0, 0)
