"""Intervals and tests against SciPy, scikit-learn, worked examples and counts made by hand."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from test_metrics import CASES, CLASSES

from utils import intervals, metrics

random = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("right", "count"), [(0, 1), (1, 1), (0, 7), (7, 7), (81, 263), (5711, 5843), (1516, 1517)]
)
def test_wilson_is_scipys(right, count):
    expected = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert intervals.wilson(right, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_a_published_example():
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
    assert intervals.mcnemar(second, first) == intervals.mcnemar(first, second)


def test_mcnemar_by_hand_and_of_many():
    # 1 and 5 of 6: P(0 or 1 heads in 6 throws) = 7/64, both sides
    assert intervals.mcnemar(1, 5) == 14 / 64
    assert intervals.mcnemar(2900, 2943) == pytest.approx(
        scipy.stats.binomtest(2900, 5843).pvalue, rel=1e-10
    )
    assert 0 < intervals.mcnemar(0, 900) < 1e-260


def test_holm_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 but not below the one before
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.9]) == [1.0, 1.0]
    assert intervals.holm([0.02]) == [0.02]
    assert intervals.holm([]) == []


def test_mean_by_its_standard_error():
    values = random.exponential(size=400)
    expected = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    assert intervals.of_mean(values) == pytest.approx(expected)
    assert intervals.of_mean(np.array([0.0, 0.0, 0.0, 1.0]))[0] == 0
    assert all(map(math.isnan, intervals.of_mean(np.ones(1))))


def confusion_of(y_true, y_pred):
    found = np.zeros((6, 6), dtype=int)
    np.add.at(found, (np.asarray(y_true) - 4, np.asarray(y_pred) - 4), 1)
    return found


@pytest.mark.parametrize("case", CASES)
def test_metrics_by_confusion_are_scikit_learns(case):
    y_true, y_pred = CASES[case]
    found = intervals.by_confusion(confusion_of(y_true, y_pred), CLASSES)
    expected = metrics.classification(y_true, y_pred, CLASSES)
    expected |= metrics.label_distance(y_true, y_pred)
    rows = metrics.per_class(y_true, y_pred, CLASSES)
    for name in ("precision", "recall", "f1"):
        assert found.pop(f"class_{name}") == pytest.approx([row[name] for row in rows], abs=1e-12)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_metrics_of_many_confusions_are_those_of_each():
    many = random.integers(0, 9, (50, 6, 6))
    together = intervals.by_confusion(many, CLASSES)
    for number, confusion in enumerate(many):
        for name, value in intervals.by_confusion(confusion, CLASSES).items():
            assert together[name][number] == pytest.approx(value)


def test_resampled_distribution_by_hand():
    """Two images of one class, one right; three of another, one right: 2 x 4 outcomes."""
    draws = intervals.resampled(np.array([[1, 1], [2, 1]]), resamples=40_000)
    assert (draws.sum(2) == [2, 3]).all()
    for (first, p_first), (second, p_second) in product(
        [(0, 1 / 4), (1, 1 / 2), (2, 1 / 4)], [(0, 8 / 27), (1, 12 / 27), (2, 6 / 27), (3, 1 / 27)]
    ):
        share = ((draws[:, 0, 0] == first) & (draws[:, 1, 1] == second)).mean()
        expected = p_first * p_second
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))
    assert np.array_equal(draws, intervals.resampled(np.array([[1, 1], [2, 1]]), resamples=40_000))


def test_bootstrap_is_that_of_single_images():
    """Images drawn one by one within each class, and scikit-learn on each such test set."""
    y_true = random.integers(4, 10, 300)
    y_pred = np.where(random.random(300) < 0.8, y_true, random.integers(4, 10, 300))
    drawn = intervals.by_confusion(intervals.resampled(confusion_of(y_true, y_pred)), CLASSES)
    by_hand = []
    for _ in range(600):
        rows = np.concatenate([random.choice(own, len(own)) for own in rows_by_class(y_true)])
        by_hand.append(metrics.classification(y_true[rows], y_pred[rows], CLASSES)["f1"])
    assert drawn["f1"].mean() == pytest.approx(np.mean(by_hand), abs=0.004)
    assert drawn["f1"].std() == pytest.approx(np.std(by_hand), rel=0.12)
    assert intervals.of_resamples(drawn["f1"]) == pytest.approx(
        np.quantile(by_hand, [0.025, 0.975]), abs=0.012
    )


def rows_by_class(classes):
    return [np.flatnonzero(classes == number) for number in np.unique(classes)]


def test_difference_is_scipys_paired_bootstrap():
    classes = np.zeros(400, dtype=int)  # one class, as SciPy knows none
    first, second = random.random(400) < 0.9, random.random(400) < 0.8
    found = intervals.of_difference(first[None], second[None], classes)
    expected = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.004)


def test_difference_draws_images_within_classes():
    """All of one class right, all of the other wrong: in classes nothing varies, else much does."""
    right = np.repeat([True, False], 50)
    classes = np.repeat([0, 1], 50)
    none = np.zeros((1, 100), dtype=bool)
    assert intervals.of_difference(right[None], none, classes) == (0.5, 0.5)
    low, high = intervals.of_difference(right[None], none, np.zeros(100))
    assert low < 0.42 and high > 0.58


def test_difference_of_several_seeds():
    """Two seeds far apart: which of them are drawn decides most of the spread."""
    classes = np.zeros(1000, dtype=int)
    seeds = np.stack([random.random(1000) < 0.9, random.random(1000) < 0.5])
    zero = np.zeros((1, 1000), dtype=bool)
    low, high = intervals.of_difference(seeds, zero, classes)
    assert low == pytest.approx(0.5, abs=0.05) and high == pytest.approx(0.9, abs=0.03)
    assert intervals.of_accuracy(seeds, classes) == pytest.approx((low, high), abs=0.01)
    same = np.stack([seeds[0], seeds[0]])
    once = intervals.of_accuracy(seeds[:1], classes)
    assert intervals.of_accuracy(same, classes) == pytest.approx(once, abs=0.005)
    assert once == pytest.approx(intervals.wilson(seeds[0].sum(), 1000), abs=0.005)


def test_calibration_error_is_that_of_single_images():
    classes = random.integers(0, 3, 600)
    confidence = random.uniform(0.4, 1, 600)
    gaps = confidence - (random.random(600) < confidence - np.array([0.4, 0.0, -0.2])[classes])
    bins = (confidence * 15).astype(int)
    by_hand = []
    for _ in range(1000):
        rows = np.concatenate([random.choice(own, len(own)) for own in rows_by_class(classes)])
        by_hand.append(metrics.expected_calibration_error(bins[rows], gaps[rows]))
    low, high = np.quantile(by_hand, [0.025, 0.975])
    measured = metrics.expected_calibration_error(bins, gaps)
    found = intervals.of_calibration_error(bins, gaps, classes)
    assert found == pytest.approx((2 * measured - high, 2 * measured - low), abs=0.008)
    # One class is always right, the other always wrong, at the same confidence: nothing varies.
    sure = np.repeat([0.2, -0.8], 50)
    fixed = intervals.of_calibration_error(np.zeros(100, int), sure, np.repeat([0, 1], 50))
    assert fixed == pytest.approx((0.3, 0.3))
    # The measured value is within, also where chance is all there is.
    low, high = intervals.of_calibration_error(bins, random.choice([-0.5, 0.5], 600), classes)
    assert low < high
    perfect = intervals.of_calibration_error(bins, np.zeros(600), classes)
    assert perfect == (0, 0)
