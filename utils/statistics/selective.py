"""How well confidence tells what a network knows: AUROC, and accuracy without the least sure."""

import math
from statistics import NormalDist

import numpy as np

from utils.statistics.intervals import CONFIDENCE, Clusters, wilson


def auroc(
    own: np.ndarray, others: np.ndarray, clusters: Clusters, other_clusters: Clusters
) -> tuple[float, float, float]:
    """Return the probability that an own image has a higher confidence than another one, and ends.

    Ties count half. The variance is that of Obuchowski, "Nonparametric analysis of clustered ROC
    curve data" (Biometrics, 1997), without the covariance of writers who wrote both kinds: the
    standard error is then up to a tenth too large for MNIST. The interval is symmetric on the logit
    scale. Where the two kinds do not overlap, there is no variance, and the other end is that of as
    many correct answers as the smaller number of clusters (Wilson's).

    :param own: confidences (N,); ``others``: (M,).
    """
    below, above = _placements(own, others), _placements(others, own)
    area = float(below.mean())
    variance = _variance(below, clusters) + _variance(above, other_clusters)
    if not 0 < area < 1 or variance == 0:
        count = min(clusters.count, other_clusters.count)
        low, high = wilson(round(area * count), count)
        return area, min(low, area), max(high, area)
    logit, error = math.log(area / (1 - area)), math.sqrt(variance) / (area * (1 - area))
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
    low, high = (1 / (1 + math.exp(-end)) for end in (logit - half, logit + half))
    return area, low, high


def _placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each value the share of the others that are lower, equal ones counted half."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    placements: np.ndarray = (below + up_to) / (2 * len(others))
    return placements


def _variance(placements: np.ndarray, clusters: Clusters) -> float:
    """Return the variance of the mean of the placements (N,) of clustered images."""
    deviations = clusters.sums((placements - placements.mean())[None])
    count = clusters.count
    if count < 2:
        return 0.0
    return float(count / (count - 1) * np.square(deviations).sum()) / len(placements) ** 2


def accuracy_without_least_sure(
    confidence: np.ndarray, correct: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy if shares of the images are set aside, and the lowest confidence left.

    :param confidence: (N,); ``correct``: bool (N,).
    :param shares: of the least sure images, in [0, 1), (K,).
    """
    order = np.argsort(confidence, kind="stable")
    first = np.floor(shares * len(order) + 1e-9).astype(int)
    correct_after = np.cumsum(correct[order][::-1])[::-1]
    return correct_after[first] / (len(order) - first), confidence[order][first]
