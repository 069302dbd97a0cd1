"""AUROC and accuracy without the least sure, against scikit-learn and loops."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from utils.statistics.intervals import Clusters
from utils.statistics.selective import accuracy_without_least_sure, auroc


def clustered(random, count, mean):
    """Return confidences, with ties, of images by writers of different confidence."""
    numbers = np.repeat(np.arange(count), random.integers(2, 9, count))
    writers = random.normal(mean, 1, count)
    confidence = (writers[numbers] + random.normal(0, 1, len(numbers))).round(1)
    return confidence, Clusters("writers", numbers)


def test_auroc_agrees_with_scikit_learn_and_a_bootstrap_over_writers():
    random = np.random.default_rng(0)
    own, clusters = clustered(random, 80, 1.5)
    others, other_clusters = clustered(random, 60, 0)
    area, low, high = auroc(own, others, clusters, other_clusters)
    truth = np.repeat([1, 0], [len(own), len(others)])
    assert area == pytest.approx(roc_auc_score(truth, np.concatenate([own, others])))
    found = []
    for _ in range(800):
        a, b = (
            np.concatenate([values[groups.numbers == k] for k in
                            random.integers(0, groups.count, groups.count)])
            for values, groups in ((own, clusters), (others, other_clusters))
        )  # fmt: skip
        found.append(roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b])))
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=0.015)
    alone = auroc(own, others, *(Clusters("images", np.arange(len(v))) for v in (own, others)))
    assert alone[2] - alone[1] < 0.8 * (high - low)  # images are not independent


def test_auroc_of_kinds_that_do_not_overlap():
    groups = Clusters("images", np.arange(30))
    area, low, high = auroc(np.arange(30) + 100.0, np.arange(30) * 1.0, groups, groups)
    assert area == high == 1 and 0.85 < low < 0.95
    area, low, high = auroc(np.arange(30) * 1.0, np.arange(30) + 100.0, groups, groups)
    assert area == low == 0 and 0.05 < high < 0.15
    assert auroc(np.ones(30), np.ones(30), groups, groups)[0] == 0.5


def test_coverage_of_the_auroc():
    random, covered = np.random.default_rng(1), 0
    truth = (
        0.7602  # of normal numbers with variances 2 and 2, their means 1.414 apart: Φ(1.414 / 2)
    )
    for _ in range(400):
        own, clusters = clustered(random, 100, 1.4142)
        others, other_clusters = clustered(random, 100, 0)
        _, low, high = auroc(own, others, clusters, other_clusters)
        covered += low <= truth <= high
    assert 0.92 * 400 <= covered <= 0.98 * 400


def test_accuracy_without_the_least_sure_by_hand():
    confidence = np.array([0.9, 0.5, 0.7, 0.6])
    correct = np.array([True, False, True, False])
    accuracy, lowest = accuracy_without_least_sure(
        confidence, correct, np.array([0, 0.25, 0.5, 0.8])
    )
    assert accuracy.tolist() == [0.5, pytest.approx(2 / 3), 1, 1]
    assert lowest.tolist() == [0.5, 0.6, 0.7, 0.9]
