"""95 % intervals of metrics, and tests of the difference between two networks.

They cover the sampling of the test images, and the seeds only where a function takes several runs.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
#: Resampled test sets per interval: its ends then vary by less than 2 % of its width.
RESAMPLES = 10_000
#: Fixed, so that the same predictions give the same intervals.
SEED = 0

Interval = tuple[float, float]


def wilson(correct: int, count: int) -> Interval:
    """Return the interval of a proportion, such as the accuracy (Wilson, 1927).

    It stays within [0, 1] and is not empty where none or all are correct; (0, 1) without images.
    An example of Newcombe (1998), table I:

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    proportion, spread = correct / count, z * z / count
    middle = (proportion + spread / 2) / (1 + spread)
    half = math.sqrt(proportion * (1 - proportion) * spread + spread * spread / 4) / (1 + spread)
    # Exact where rounding would leave the end slightly off 0 or 1.
    return (
        max(0.0, middle - half) if correct else 0.0,
        min(1.0, middle + half) if correct < count else 1.0,
    )


def mean_interval(values: np.ndarray) -> Interval:
    """Return the interval of the mean of ``values`` (N,) >= 0; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return max(0.0, float(values.mean() - half)), float(values.mean() + half)


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Return the percentile interval (…, 2) of resampled values (…, resamples)."""
    tail = (1 - CONFIDENCE) / 2
    return np.moveaxis(np.quantile(values, (tail, 1 - tail), axis=-1), 0, -1)


def resample_confusion(confusion: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the confusion matrices (resamples, C, C) of resampled test sets.

    Images are drawn with replacement within each class, so that each row of ``confusion`` (true
    class by predicted class) is one multinomial draw.
    """
    random = np.random.default_rng(SEED)
    draws = [
        random.multinomial(row.sum(), row / max(row.sum(), 1), size=resamples) for row in confusion
    ]
    return np.stack(draws, axis=1)


def metrics_from_confusion(counts: np.ndarray, digits: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the metrics of confusion matrices (…, C, C), as :mod:`utils.metrics` defines them.

    ``class_precision``, ``class_recall`` and ``class_f1`` are arrays (…, C), the others (…). An
    evaluation does not call scikit-learn itself, which takes 0.8 s to import.
    """
    counts = counts.astype(np.float64)
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    total = true.sum(-1)
    weights = true / total[..., None]
    scores = {
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, true),
        "f1": _ratio(2 * correct, true + predicted),
    }
    quantities = np.array(digits, dtype=np.float64)
    distance = np.subtract.outer(quantities, quantities)
    mse = (counts * distance**2).sum((-2, -1)) / total
    mean = (weights * quantities).sum(-1, keepdims=True)
    variance = (weights * (quantities - mean) ** 2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where all images are of one digit, scikit-learn returns 1 without errors, else 0.
        r2 = np.where(variance > 0, 1 - mse / variance, np.where(mse > 0, 0.0, 1.0))
    return {
        "accuracy": correct.sum(-1) / total,
        "balanced_accuracy": scores["recall"].sum(-1) / (true > 0).sum(-1),
        **{name: values.mean(-1) for name, values in scores.items()},
        **{f"weighted_{name}": (weights * values).sum(-1) for name, values in scores.items()},
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": (counts * np.abs(distance)).sum((-2, -1)) / total,
        "r2": np.where(total > 1, r2, math.nan),
        **{f"class_{name}": values for name, values in scores.items()},
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return ``part / whole``, 0 where ``whole`` is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio


def calibration_error_interval(
    bins: np.ndarray, gaps: np.ndarray, classes: np.ndarray, resamples: int = 1000
) -> Interval:
    """Return the interval of the expected calibration error.

    Sampling biases this error upward, and resampling does so again, so the resampled values are
    reflected at the measured one (basic bootstrap: Davison and Hinkley, 1997, section 5.2). Near
    zero the interval is too optimistic: for perfectly calibrated networks two of three intervals
    reach down to (practically) zero. Each image is drawn: 1000 resamples of MNIST 4-9 take 0.08 s.

    :param bins: bins (N,) and ``gaps`` (N,) from :func:`.probabilities.confidence_gaps`.
    :param classes: the true classes (N,).
    """
    random = np.random.default_rng(SEED)
    width = int(bins.max()) + 1
    sums = np.zeros((resamples, width))
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        drawn = members[random.integers(0, len(members), (resamples, len(members)))]
        cells = bins[drawn] + width * np.arange(resamples)[:, None]
        sums += np.bincount(cells.ravel(), gaps[drawn].ravel(), sums.size).reshape(sums.shape)
    low, high = percentile_interval(np.abs(sums).sum(1) / len(gaps))
    measured = float(np.abs(np.bincount(bins, gaps)).sum() / len(gaps))
    low, high = 2 * measured - high, 2 * measured - low
    return max(0.0, min(float(low), measured)), max(float(high), measured)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947), in [0, 1]; 0 below 1e-323.

    If two networks are equally good, the numbers of images that only the first and only the second
    predicts correctly are split as Binomial(n, 1/2); without such images the p-value is 1.
    """
    from scipy.stats import binomtest  # half a second, and only comparisons need it

    count = only_first + only_second
    return float(binomtest(min(only_first, only_second), count).pvalue) if count else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted to keep the family-wise error rate (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled.clip(max=1))
    return [float(p) for p in adjusted]


def accuracy_interval(correct: np.ndarray, classes: np.ndarray) -> Interval:
    """Return the interval of the mean accuracy of several runs, see :func:`difference_interval`."""
    # The difference from a network that is never correct.
    return difference_interval(correct, np.zeros((1, len(classes)), dtype=bool), classes)


def difference_interval(first: np.ndarray, second: np.ndarray, classes: np.ndarray) -> Interval:
    """Return the interval of the difference of two mean accuracies, by a paired bootstrap.

    Images are resampled within each class. Of several runs with different seeds, the runs are
    resampled too, so that the interval covers other test sets and other seeds.

    :param first: whether each prediction of the first network is correct, bool (runs, N).
    :param second: the same for the second network, bool (its runs, N).
    :param classes: the true classes (N,).
    """
    random = np.random.default_rng(SEED)
    correct = np.concatenate([first, second])
    sums = np.zeros((RESAMPLES, len(correct)))
    for number in np.unique(classes):
        # One cell for all images that the same runs predict correctly: far fewer draws than images.
        patterns, counts = np.unique(correct[:, classes == number], axis=1, return_counts=True)
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        sums += drawn @ patterns.T.astype(np.float64)
    accuracies = []
    for part in np.split(sums / len(classes), [len(first)], axis=1):
        runs = part.shape[1]
        weights = random.multinomial(runs, [1 / runs] * runs, size=RESAMPLES)
        accuracies.append((part * weights).sum(1) / runs)
    low, high = percentile_interval(accuracies[0] - accuracies[1])
    return float(low), float(high)
