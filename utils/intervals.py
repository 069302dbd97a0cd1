"""How sure a number is: 95 % intervals of metrics, and tests of the difference of two networks.

All of it is about which images happen to be in the test set; how much trainings with other seeds
differ is another question, which several trainings answer.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
#: Resampled test sets behind an interval: its ends then vary by less than 2 % of its width.
RESAMPLES = 10_000
#: Of the resampling, so that the same predictions give the same intervals.
SEED = 0

Interval = tuple[float, float]


def wilson(right: int, count: int) -> Interval:
    """Interval of a share, such as accuracy, from ``right`` of ``count`` (Wilson, 1927).

    Unlike the textbook's it stays within [0, 1] and is not empty where nothing, or all, is wrong;
    of no images it is (0, 1).

    An example of Newcombe (1998), table I:

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # Rounding must not lead past what 0 or all of them right give exactly.
    return (
        max(0.0, middle - half) if right else 0.0,
        min(1.0, middle + half) if right < count else 1.0,
    )


def of_mean(values: np.ndarray) -> Interval:
    """Interval of the mean of ``values`` (N,), none below 0, by its standard error."""
    if len(values) < 2:
        return math.nan, math.nan
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return max(0.0, float(values.mean() - half)), float(values.mean() + half)


def of_resamples(values: np.ndarray) -> np.ndarray:
    """Percentile interval (…, 2) of resampled values (…, resamples)."""
    tail = (1 - CONFIDENCE) / 2
    return np.moveaxis(np.quantile(values, (tail, 1 - tail), axis=-1), 0, -1)


def resampled(confusion: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Confusion matrices (resamples, C, C) of test sets drawn anew from the images of this one.

    As many images of each class as there are are drawn with replacement, so that a row of
    ``confusion`` (true class by predicted class) is one multinomial draw.
    """
    random = np.random.default_rng(SEED)
    draws = [
        random.multinomial(row.sum(), row / max(row.sum(), 1), size=resamples) for row in confusion
    ]
    return np.stack(draws, axis=1)


def by_confusion(counts: np.ndarray, digits: Sequence[int]) -> dict[str, np.ndarray]:
    """The metrics that follow from confusion matrices (…, C, C), all of them at once.

    Arrays (…): those of :func:`utils.metrics.classification` and
    :func:`utils.metrics.label_distance`, by the same definitions.
    Arrays (…, C): ``class_precision``, ``class_recall`` and ``class_f1``.
    """
    counts = counts.astype(np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    total = true.sum(-1)
    precision, recall = _ratio(right, predicted), _ratio(right, true)
    f1 = _ratio(2 * right, true + predicted)
    share = true / total[..., None]
    of_digits = np.array(digits, dtype=np.float64)
    distance = np.subtract.outer(of_digits, of_digits)
    mse = (counts * distance**2).sum((-2, -1)) / total
    mean = (share * of_digits).sum(-1, keepdims=True)
    variance = (share * (of_digits - mean) ** 2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where all are of one digit, scikit-learn has 1 for no mistake and 0 for any.
        r2 = np.where(variance > 0, 1 - mse / variance, np.where(mse > 0, 0.0, 1.0))
    return {
        "accuracy": right.sum(-1) / total,
        "balanced_accuracy": recall.sum(-1) / (true > 0).sum(-1),
        "precision": precision.mean(-1),
        "recall": recall.mean(-1),
        "f1": f1.mean(-1),
        "weighted_precision": (share * precision).sum(-1),
        "weighted_recall": (share * recall).sum(-1),
        "weighted_f1": (share * f1).sum(-1),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": (counts * np.abs(distance)).sum((-2, -1)) / total,
        "r2": np.where(total > 1, r2, math.nan),
        "class_precision": precision,
        "class_recall": recall,
        "class_f1": f1,
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, 0 where there is no whole."""
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio


def of_calibration_error(
    bins: np.ndarray, gaps: np.ndarray, classes: np.ndarray, resamples: int = 1000
) -> Interval:
    """Interval of the expected calibration error of :func:`utils.metrics.confidence_gaps`.

    Chance alone makes an error of zero into one above zero, and resampling adds as much again; so
    the resampled values are reflected at the measured one (the basic bootstrap of Davison and
    Hinkley, 1997, section 5.2). Near an error of zero that is too optimistic: of perfectly
    calibrated networks two of three intervals reach down to (practically) zero. It is the one
    interval here that needs a draw for each image: 1000 resamples of MNIST 4-9 take 0.08 s.
    """
    random = np.random.default_rng(SEED)
    width = int(bins.max()) + 1
    sums = np.zeros((resamples, width))
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        drawn = own[random.integers(0, len(own), (resamples, len(own)))]
        cells = bins[drawn] + width * np.arange(resamples)[:, None]
        sums += np.bincount(cells.ravel(), gaps[drawn].ravel(), sums.size).reshape(sums.shape)
    low, high = of_resamples(np.abs(sums).sum(1) / len(gaps))
    measured = float(np.abs(np.bincount(bins, gaps)).sum() / len(gaps))
    low, high = 2 * measured - high, 2 * measured - low
    return max(0.0, min(float(low), measured)), max(float(high), measured)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, in [0, 1]; 0 if below 1e-308.

    Of the images that one of two networks gets right and the other wrong, ``only_first`` are the
    first's. Were the two equally good, that number would be binomial with 1/2 (McNemar, 1947).
    """
    count = only_first + only_second
    ways = term = 1  # whole numbers: the sum of the binomial coefficients has thousands of digits
    for number in range(min(only_first, only_second)):
        term = term * (count - number) // (number + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << count))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that the chance of any false alarm stays what a
    single one has (Holm, 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def of_accuracy(right: np.ndarray, classes: np.ndarray) -> Interval:
    """Interval of the mean accuracy of several trainings; the arrays are as in
    :func:`of_difference`."""
    (accuracy,) = _resampled_accuracies([right], classes)
    low, high = of_resamples(accuracy)
    return float(low), float(high)


def of_difference(first: np.ndarray, second: np.ndarray, classes: np.ndarray) -> Interval:
    """Interval of the difference of two accuracies on the same images, by a paired bootstrap.

    The images are resampled within each class, and where there are several trainings with other
    seeds, these too: the interval is for another test set and other seeds.

    :param first: whether each image is right, bool (trainings, N).
    :param second: the same for the other network, bool (its trainings, N).
    :param classes: the true classes (N,).
    """
    accuracy, other = _resampled_accuracies([first, second], classes)
    low, high = of_resamples(accuracy - other)
    return float(low), float(high)


def _resampled_accuracies(groups: list[np.ndarray], classes: np.ndarray) -> list[np.ndarray]:
    """For each group its mean accuracy (resamples,) on the same resampled images."""
    random = np.random.default_rng(SEED)
    right = np.concatenate(groups)
    sums = np.zeros((RESAMPLES, len(right)))
    for number in np.unique(classes):
        # Images that the same trainings get right are one cell: few numbers are drawn, not one an
        # image.
        patterns, counts = np.unique(right[:, classes == number], axis=1, return_counts=True)
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        sums += drawn @ patterns.T.astype(np.float64)
    accuracies = []
    for part in np.split(sums / len(classes), np.cumsum([len(g) for g in groups[:-1]]), axis=1):
        trainings = part.shape[1]
        weights = random.multinomial(trainings, [1 / trainings] * trainings, size=RESAMPLES)
        accuracies.append((part * weights).sum(1) / trainings)
    return accuracies
