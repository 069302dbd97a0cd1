"""95 % intervals of metrics, and tests of the difference between two networks.

They cover the sampling of the test images, by a bootstrap over their writers, and the seeds only
where a function takes several runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Self

import numpy as np

CONFIDENCE = 0.95
#: Resampled test sets per interval: its ends then vary by less than 2 % of its width.
RESAMPLES = 10_000
#: Fixed, so that the same predictions give the same intervals.
SEED = 0
#: Resamples at a time: those of 34 000 clusters then take 300 MB.
BLOCK = 1000
#: Consecutive images that are resampled together where their writers are unknown.
RUN = 10

Interval = tuple[float, float]


def wilson(correct: float, count: int, design_effect: float = 1.0) -> Interval:
    """Return the interval of a proportion, such as the accuracy (Wilson, 1927).

    It stays within [0, 1] and is not empty where none or all are correct; (0, 1) without images.
    ``count / design_effect`` images are taken as independent.
    An example of Newcombe (1998), table I:

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    proportion, spread = correct / count, z * z / count * design_effect
    middle = (proportion + spread / 2) / (1 + spread)
    half = math.sqrt(proportion * (1 - proportion) * spread + spread * spread / 4) / (1 + spread)
    # Exact where rounding would leave the end slightly off 0 or 1.
    return (
        max(0.0, middle - half) if correct else 0.0,
        min(1.0, middle + half) if correct < count else 1.0,
    )


@dataclass(frozen=True)
class Clusters:
    """Images whose errors come together, so that they are resampled together.

    :ivar kind: what a cluster is, as a plural: ``"writers"``.
    :ivar numbers: the cluster of each image, from 0, (N,).
    """

    kind: str
    numbers: np.ndarray

    @classmethod
    def of(cls, writers: np.ndarray | None, images: int) -> Self:
        """Return the writers (N,) as clusters; where they are unknown, runs of images.

        In USPS neighbors are from one envelope: what a digit's ink is above the mean of its class
        correlates by 0.44 with that of the next image, by 0.05 with that of the fourth.
        """
        if writers is None:
            return cls(f"runs of {RUN} consecutive images", np.arange(images) // RUN)
        return cls("writers", np.unique(writers, return_inverse=True)[1])

    @property
    def count(self) -> int:
        """The number of clusters."""
        return int(self.numbers.max()) + 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums (clusters, K) of values (K, N) over the images of each cluster."""
        return np.stack([np.bincount(self.numbers, row, self.count) for row in values], axis=1)

    def resample_means(self, values: np.ndarray) -> np.ndarray:
        """Return the means (RESAMPLES, K) of values (K, N) over resampled test sets."""
        sums = _resample(self.sums(np.vstack([values, np.ones(len(self.numbers))])))
        means: np.ndarray = sums[:, :-1] / sums[:, -1:]
        return means

    def resample_confusion(self, true: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
        """Return the confusion matrices (RESAMPLES, size, size) of resampled test sets.

        :param true: the classes (N,), from 0; ``predicted`` likewise.
        """
        cells = np.ravel_multi_index((self.numbers, true, predicted), (self.count, size, size))
        counts = np.bincount(cells, minlength=self.count * size**2)
        return _resample(counts.reshape(self.count, size**2)).reshape(RESAMPLES, size, size)


def _resample(sums: np.ndarray) -> np.ndarray:
    """Return the totals (RESAMPLES, K) of sums (clusters, K) over resampled clusters."""
    parts = np.split(draws(len(sums)), RESAMPLES // BLOCK)
    return np.concatenate([part.astype(np.float64) @ sums for part in parts])


@lru_cache(maxsize=1)
def draws(count: int) -> np.ndarray:
    """Return how often each cluster is drawn with replacement, uint8 (RESAMPLES, count)."""
    random, numbers = np.random.default_rng(SEED), np.empty((RESAMPLES, count), np.uint8)
    for start in range(0, RESAMPLES, BLOCK):
        drawn = random.integers(0, count, (BLOCK, count)) + count * np.arange(BLOCK)[:, None]
        found = np.bincount(drawn.ravel(), minlength=drawn.size)
        numbers[start : start + BLOCK] = found.reshape(drawn.shape)
    return numbers


def proportion_interval(correct: int, count: int, resampled: np.ndarray) -> Interval:
    """Return Wilson's interval with the effective number of images.

    That is the number of independent images whose proportion would vary as the ``resampled`` one
    (RESAMPLES,) does, and at most ``count``. With few errors it covers better than the percentile
    interval, which is empty without errors (Franco, Little, Louis and Slud, "Comparative Study of
    Confidence Intervals for Proportions in Complex Sample Surveys", 2019).
    """
    return wilson(correct, count, design_effect(correct, count, resampled))


def design_effect(correct: int, count: int, resampled: np.ndarray) -> float:
    """Return the variance of a proportion over that of independent images (Kish, 1965), from 1."""
    variance = correct * (count - correct) / max(count, 1) ** 3
    return max(1.0, float(resampled.var()) / variance) if variance else 1.0


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Return the percentile interval (…, 2) of resampled values (…, resamples)."""
    tail = (1 - CONFIDENCE) / 2
    return np.moveaxis(np.quantile(values, (tail, 1 - tail), axis=-1), 0, -1)


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


def calibration_error_interval(bins: np.ndarray, gaps: np.ndarray, clusters: Clusters) -> Interval:
    """Return the interval of the expected calibration error.

    Sampling biases this error upward, and resampling does so again, so the resampled values are
    reflected at the measured one (basic bootstrap: Davison and Hinkley, 1997, section 5.2). Near
    zero the interval is too optimistic: for perfectly calibrated networks two of three intervals
    reach down to (practically) zero.

    :param bins: bins (N,) and ``gaps`` (N,) from :func:`.probabilities.confidence_gaps`.
    """
    by_bin = gaps * (bins == np.arange(bins.max() + 1)[:, None])
    low, high = percentile_interval(np.abs(clusters.resample_means(by_bin)).sum(1))
    measured = float(np.abs(by_bin.sum(1)).sum() / len(gaps))
    low, high = 2 * measured - high, 2 * measured - low
    return max(0.0, min(float(low), measured)), max(float(high), measured)


def paired_p(differences: np.ndarray) -> float:
    """Return the two-sided p-value of the exact sign-flip test, in [0, 1]; 0 below 1e-323.

    If two networks are equally good, a cluster's difference of correct images is as likely the
    opposite. Where each cluster is one image, this is McNemar's exact test (1947).

    :param differences: of each cluster, whole numbers (clusters,).
    """
    sizes = np.abs(differences[differences != 0]).astype(int)
    distribution = np.ones(1)  # of the sum of the differences so far, from its lowest value
    for size in sizes:
        flipped = np.zeros(len(distribution) + 2 * size)
        flipped[: len(distribution)] += distribution / 2
        flipped[2 * size :] += distribution / 2
        distribution = flipped
    sums = np.abs(np.arange(len(distribution)) - sizes.sum())
    return min(1.0, float(distribution[sums >= abs(differences.sum())].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted to keep the family-wise error rate (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled.clip(max=1))
    return [float(p) for p in adjusted]


def accuracy_interval(correct: np.ndarray, clusters: Clusters) -> Interval:
    """Return the interval of the mean accuracy of runs, ``correct`` bool (runs, N).

    That of several runs is :func:`proportion_interval`, too, for the variance over resampled
    clusters and runs, which may be smaller than that of one run.
    """
    resampled, count = clusters.resample_means(correct), correct.shape[1]
    if len(correct) == 1:
        return proportion_interval(int(correct.sum()), count, resampled[:, 0])
    accuracy, variance = float(correct.mean()), float(_resample_runs(resampled).var())
    independent = accuracy * (1 - accuracy) / count
    return wilson(accuracy * count, count, variance / independent if independent else 1.0)


def _resample_runs(accuracies: np.ndarray) -> np.ndarray:
    """Return the mean accuracy of resampled runs, (RESAMPLES,), from those of each run."""
    runs = accuracies.shape[1]
    random = np.random.default_rng(SEED + 1)  # not the draws of the clusters
    weights = random.multinomial(runs, [1 / runs] * runs, size=RESAMPLES)
    mean: np.ndarray = (accuracies * weights).sum(1) / runs
    return mean


def difference_interval(first: np.ndarray, second: np.ndarray, clusters: Clusters) -> Interval:
    """Return the interval of the difference of two mean accuracies, by a paired bootstrap.

    Clusters are resampled. Of several runs with different seeds, the runs are resampled too, so
    that the interval covers other test sets and other seeds.

    :param first: whether each prediction of the first network is correct, bool (runs, N).
    :param second: the same for the second network, bool (its runs, N).
    """
    means = clusters.resample_means(np.concatenate([first, second]))
    drawn = [_resample_runs(part) for part in np.split(means, [len(first)], axis=1)]
    low, high = percentile_interval(drawn[0] - drawn[1])
    return float(low), float(high)
