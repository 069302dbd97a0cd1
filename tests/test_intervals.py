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
from utils.statistics.intervals import Clusters
from utils.statistics.probabilities import expected_calibration_error

random = np.random.default_rng(0)
STATE = random.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order_of_tests():
    random.bit_generator.state = STATE


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


def one_each(images):
    """Return clusters of one image each."""
    return Clusters("images", np.arange(images))


def mcnemar(only_first, only_second):
    """Return the p-value where every image is a cluster."""
    return intervals.paired_p(np.repeat([1, -1, 0], [only_first, only_second, 5]))


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (1, 1), (5, 5), (0, 12), (3, 12), (59, 6), (121, 59)]
)
def test_for_single_images_the_sign_flip_test_is_mcnemars(first, second):
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(first, second) == pytest.approx(exact(first, second), rel=1e-12)
    assert mcnemar(second, first) == mcnemar(first, second)


@pytest.mark.parametrize("differences", [[2, -1, 3, 0, 1], [5, 1, 1, 1, -2], [1], [4, -4], []])
def test_sign_flips_agree_with_all_of_them_counted(differences):
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True))
            for signs in product((1, -1), repeat=len(differences))]  # fmt: skip
    expected = np.mean([abs(each) >= abs(sum(differences)) for each in sums])
    assert intervals.paired_p(np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_sign_flips_agree_with_scipys_permutations():
    differences = random.integers(-3, 5, 12)
    found = scipy.stats.permutation_test(
        (differences, -differences),
        lambda a, b, axis: np.sum(a, axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    # SciPy doubles the smaller tail, which is the same for a symmetric distribution.
    assert intervals.paired_p(differences) == pytest.approx(found.pvalue, rel=1e-9)


def exact(first, second):
    """Return the p-value by rational arithmetic."""
    count = first + second
    tail = sum(math.comb(count, k) for k in range(min(first, second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def test_mcnemar_by_hand_and_for_many_images():
    # 1 and 5 of 6: P(0 or 1 heads in 6 throws) = 7/64, both sides
    assert mcnemar(1, 5) == pytest.approx(14 / 64, rel=1e-15)
    assert mcnemar(0, 900) == pytest.approx(exact(0, 900), rel=1e-12)
    assert 0 < mcnemar(0, 900) < 1e-260
    assert mcnemar(2, 2000) == 0


def test_holm_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, raised to the value before it
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.9]) == [1.0, 1.0]
    assert intervals.holm([0.02]) == [0.02]
    assert intervals.holm([]) == []


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
    """Three writers with 1, 2 and 3 images; each is drawn as often as a die of three shows it."""
    numbers = np.repeat([0, 1, 2], [1, 2, 3])
    true, predicted = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 0, 0])
    draws = Clusters("writers", numbers).resample_confusion(true, predicted, 2)
    of_writer = np.array([[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [2, 1]]])
    for drawn in product(range(3), repeat=3):
        counts = np.bincount(drawn, minlength=3)
        ways = math.factorial(3) / math.prod(map(math.factorial, counts))
        confusion = (counts[:, None, None] * of_writer).sum(0)
        found = (draws == confusion).all((1, 2)).mean()
        expected = ways / 27
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / intervals.RESAMPLES))


def simulated(count, accuracy=0.8):
    """Return clusters of 1 to 9 images, true and predicted classes; errors come in clusters."""
    numbers = np.repeat(np.arange(count), random.integers(1, 10, count))
    classes = random.integers(4, 10, len(numbers))
    right = (
        random.random(len(numbers)) < random.beta(accuracy * 3, (1 - accuracy) * 3, count)[numbers]
    )
    return Clusters("writers", numbers), classes, np.where(right, classes, random.integers(4, 10))


def by_hand(clusters, metric, count=1500):
    """Return a metric of the rows of test sets, whose writers are drawn in a loop."""
    members = [np.flatnonzero(clusters.numbers == k) for k in range(clusters.count)]
    drawn = (random.integers(0, len(members), len(members)) for _ in range(count))
    return np.array([metric(np.concatenate([members[k] for k in each])) for each in drawn])


def test_bootstrap_agrees_with_a_loop_over_writers():
    clusters, y_true, y_pred = simulated(60)
    drawn = intervals.metrics_from_confusion(
        clusters.resample_confusion(y_true - 4, y_pred - 4, 6), CLASSES
    )
    expected = by_hand(clusters, lambda rows: metrics.f1(y_true[rows], y_pred[rows], CLASSES), 600)
    assert drawn["f1"].mean() == pytest.approx(expected.mean(), abs=0.01)
    assert drawn["f1"].std() == pytest.approx(expected.std(), rel=0.12)
    correct = y_true == y_pred
    accuracies = by_hand(clusters, lambda rows: correct[rows].mean())
    assert drawn["accuracy"].std() == pytest.approx(accuracies.std(), rel=0.08)
    found = clusters.resample_means(np.stack([correct, 2.0 * correct]))
    assert found[:, 0] == pytest.approx(drawn["accuracy"])
    assert found[:, 1] == pytest.approx(2 * found[:, 0])


def test_variance_agrees_with_the_ratio_estimators():
    """Cochran, "Sampling Techniques" (1977), section 6.3: the variance of a ratio of two sums."""
    clusters, y_true, y_pred = simulated(300, 0.95)
    correct = y_true == y_pred
    errors, sizes = np.bincount(clusters.numbers, ~correct), np.bincount(clusters.numbers)
    residuals = errors - errors.sum() / sizes.sum() * sizes
    variance = residuals.var(ddof=1) * len(sizes) / sizes.sum() ** 2
    drawn = clusters.resample_means(correct[None])[:, 0]
    assert drawn.var() == pytest.approx(variance, rel=0.06)
    accuracy = correct.mean()
    effect = intervals.design_effect(int(correct.sum()), len(correct), drawn)
    assert effect == pytest.approx(variance * len(correct) / accuracy / (1 - accuracy), rel=0.06)


def test_interval_of_independent_images_is_wilsons():
    correct = np.repeat([True, False], [970, 30])
    ends = intervals.accuracy_interval(correct[None], one_each(1000))
    assert ends == pytest.approx(intervals.wilson(970, 1000), abs=5e-4)
    assert ends[0] <= intervals.wilson(970, 1000)[0]
    assert intervals.accuracy_interval(correct[None, :970], one_each(970)) == intervals.wilson(
        970, 970
    )


@pytest.mark.parametrize(
    ("accuracy", "correlation", "writers", "images"),
    [(0.977, 0.05, 297, 20), (0.95, 0.1, 152, 10), (0.999, 0.02, 297, 14), (0.9, 0.0, 100, 20)],
)
def test_coverage_of_simulated_writers(accuracy, correlation, writers, images):
    """The interval covers the truth in 93 to 97 % of 1000 test sets whose errors come by writer.

    A writer's error rate is drawn from a beta distribution; then so are the images' errors.
    """
    draws = np.random.default_rng(1)
    spread = (1 - correlation) / max(correlation, 1e-9)
    drawn = intervals.draws(writers)[:2000].astype(np.float32)
    covered, by_wilson = 0, 0
    for _ in range(1000):
        sizes = draws.integers(images // 2, images * 3 // 2 + 1, writers)
        rates = draws.beta((1 - accuracy) * spread, accuracy * spread, writers)
        errors = draws.binomial(sizes, rates)
        sums = drawn @ np.stack([sizes - errors, sizes], axis=1).astype(np.float32)
        correct, count = int((sizes - errors).sum()), int(sizes.sum())
        low, high = intervals.proportion_interval(correct, count, sums[:, 0] / sums[:, 1])
        covered += low <= accuracy <= high
        low, high = intervals.wilson(correct, count)
        by_wilson += low <= accuracy <= high
    assert 930 <= covered <= 970
    if correlation >= 0.05:
        assert by_wilson < 900


def test_writers_and_runs_of_images():
    found = Clusters.of(np.array([300, 7, 300, 12]), 4)
    assert (found.kind, found.count, found.numbers.tolist()) == ("writers", 3, [2, 0, 2, 1])
    runs = Clusters.of(None, 25)
    assert runs.kind == "runs of 10 consecutive images"
    assert np.bincount(runs.numbers).tolist() == [10, 10, 5]


def test_difference_agrees_with_scipys_paired_bootstrap():
    first, second = random.random(400) < 0.9, random.random(400) < 0.8
    found = intervals.difference_interval(first[None], second[None], one_each(400))
    expected = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.004)


def test_difference_of_several_seeds():
    """Two seeds that differ a lot: most of the width comes from which seeds are drawn."""
    seeds = np.stack([random.random(1000) < 0.9, random.random(1000) < 0.5])
    zero = np.zeros((1, 1000), dtype=bool)
    low, high = intervals.difference_interval(seeds, zero, one_each(1000))
    assert low == pytest.approx(0.5, abs=0.05) and high == pytest.approx(0.9, abs=0.03)
    ends = intervals.accuracy_interval(seeds, one_each(1000))
    mean, half = seeds.mean(), (seeds[0].mean() - seeds[1].mean()) / 2
    effect = half**2 / 2 / (mean * (1 - mean) / 1000)  # the variance of the mean of two draws
    expected = intervals.wilson(mean * 1000, 1000, effect)
    assert ends == pytest.approx(expected, abs=0.02)
    assert intervals.accuracy_interval(np.ones((5, 900), bool), one_each(900)) == intervals.wilson(
        900, 900
    )
    same = np.stack([seeds[0], seeds[0]])
    once = intervals.accuracy_interval(seeds[:1], one_each(1000))
    assert intervals.accuracy_interval(same, one_each(1000)) == pytest.approx(once, abs=0.005)


def test_calibration_error_agrees_with_a_loop_over_writers():
    clusters, classes, predicted = simulated(120)
    confidence = random.uniform(0.4, 1, len(classes))
    gaps, bins = confidence - (classes == predicted), (confidence * 15).astype(int)
    expected = by_hand(clusters, lambda rows: expected_calibration_error(bins[rows], gaps[rows]))
    low, high = np.quantile(expected, [0.025, 0.975])
    measured = expected_calibration_error(bins, gaps)
    found = intervals.calibration_error_interval(bins, gaps, clusters)
    assert found == pytest.approx((2 * measured - high, 2 * measured - low), abs=0.012)
    # The interval contains the measured value, even if the gaps are pure noise.
    noise = random.choice([-0.5, 0.5], len(bins))
    low, high = intervals.calibration_error_interval(bins, noise, clusters)
    assert low <= expected_calibration_error(bins, noise) <= high and low < high
    assert intervals.calibration_error_interval(bins, np.zeros(len(bins)), clusters) == (0, 0)
