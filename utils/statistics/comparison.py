"""Comparisons of evaluations: a ranking per test set, and the differences of its entries."""

import hashlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from utils.records.evaluation import DatasetRecord, Evaluation, EvaluationRecord, metric_values
from utils.records.files import relative_to_root
from utils.records.run import modernize_settings
from utils.statistics.intervals import (
    Interval,
    accuracy_interval,
    difference_interval,
    holm,
    mcnemar,
)

#: With more entries than this, only the best one is compared with the others.
ALL_PAIRS = 10


@dataclass(frozen=True)
class Entry:
    """A line of a ranking: one evaluation, or those of runs that differ only in the seed."""

    name: str
    runs: tuple[Evaluation, ...]

    @property
    def record(self) -> EvaluationRecord:
        """The record of the first run."""
        return self.runs[0].record

    @property
    def layers(self) -> str:
        """The network, such as ``SMLP 784-77-77-77-77-6``."""
        return self.record["model"]["layers"]

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool (runs, N)."""
        return np.stack([run.correct for run in self.runs])

    @property
    def accuracy(self) -> float:
        """The mean accuracy of the runs."""
        return float(self.correct.mean())

    @cached_property
    def interval(self) -> Interval:
        """The interval of the accuracy: Wilson's, or for several runs a bootstrap interval."""
        if len(self.runs) > 1:
            return accuracy_interval(self.correct, self.runs[0].labels)
        low, high = self.record["intervals"]["accuracy"]
        assert low is not None and high is not None, "accuracy is always defined"
        return low, high

    def mean_and_deviation(self, metric: str) -> tuple[float | None, float | None]:
        """Return mean and standard deviation of a metric over the runs."""
        return mean_and_deviation([metric_values(run.record)[metric] for run in self.runs])


@dataclass(frozen=True)
class Difference:
    """Two entries of one ranking, the better one first.

    :ivar interval: of the difference of their accuracies.
    :ivar only_first: images that only the first entry predicts correctly; ``None``, like the
        p-values, if an entry has several runs.
    :ivar mcnemar_p: p-value of McNemar's test.
    :ivar holm_p: that p-value, adjusted for all tests on this test set.
    """

    first: Entry
    second: Entry
    interval: Interval
    only_first: int | None = None
    only_second: int | None = None
    mcnemar_p: float | None = None
    holm_p: float | None = None

    @property
    def accuracy_difference(self) -> float:
        """The accuracy of the first minus that of the second, at least 0."""
        return self.first.accuracy - self.second.accuracy


@dataclass(frozen=True)
class TestSet:
    """The entries of one test set, the most accurate one first."""

    __test__ = False  # not a test class of pytest

    entries: tuple[Entry, ...]

    @property
    def dataset(self) -> DatasetRecord:
        """The name of the dataset, and the hashes of its images and labels."""
        return self.entries[0].record["dataset"]

    @property
    def labels(self) -> np.ndarray:
        """The true digits (N,)."""
        return self.entries[0].runs[0].labels

    @property
    def name(self) -> str:
        """The dataset, with the beginning of a hash over the hashes of its images and labels."""
        digest = hashlib.sha256(self.entries[0].runs[0].test_set.encode()).hexdigest()[:8]
        return f"{self.dataset['name']} ({len(self.labels)} images, {digest})"

    @cached_property
    def ranks(self) -> list[int]:
        """The rank of each entry, from 1; equal accuracies share a rank."""
        accuracies = [entry.accuracy for entry in self.entries]
        return [1 + sum(other > accuracy for other in accuracies) for accuracy in accuracies]

    @cached_property
    def differences(self) -> list[Difference]:
        """The differences of all pairs; with many entries, of the best and each other one."""
        pairs = list(combinations(self.entries, 2))
        if len(self.entries) > ALL_PAIRS:
            pairs = pairs[: len(self.entries) - 1]
        found = [_difference(first, second, self.labels) for first, second in pairs]
        adjusted = iter(holm([each.mcnemar_p for each in found if each.mcnemar_p is not None]))
        return [
            each if each.mcnemar_p is None else replace(each, holm_p=next(adjusted))
            for each in found
        ]

    def record(self) -> dict[str, object]:
        """Return all numbers as plain values for JSON."""
        return {
            "dataset": {
                "name": self.dataset["name"],
                "images_sha256": self.dataset["images_sha256"],
                "labels_sha256": self.dataset["labels_sha256"],
            },
            "images": len(self.labels),
            "ranking": [
                {
                    "rank": rank,
                    "name": entry.name,
                    "runs": [relative_to_root(run.path) for run in entry.runs],
                    "layers": entry.layers,
                    "accuracy": entry.accuracy,
                    "interval": list(entry.interval),
                }
                for rank, entry in zip(self.ranks, self.entries, strict=True)
            ],
            "differences": [
                {
                    "first": each.first.name,
                    "second": each.second.name,
                    "difference": each.accuracy_difference,
                    "interval": list(each.interval),
                    "only_first": each.only_first,
                    "only_second": each.only_second,
                    "mcnemar_p": each.mcnemar_p,
                    "holm_p": each.holm_p,
                }
                for each in self.differences
            ],
        }


def rank_by_test_set(evaluations: Sequence[Evaluation]) -> list[TestSet]:
    """Return the ranked entries of each test set, identified by the hashes of images and labels."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.test_set, []).append(evaluation)
    return [
        TestSet(tuple(sorted(_entries(members), key=lambda entry: -entry.accuracy)))
        for members in groups.values()
    ]


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation.

    Both are ``None`` if a value is undefined, and the deviation is for fewer than two values.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _difference(first: Entry, second: Entry, labels: np.ndarray) -> Difference:
    """Compare two entries; McNemar's test is for two single runs."""
    interval = difference_interval(first.correct, second.correct, labels)
    if len(first.runs) > 1 or len(second.runs) > 1:
        return Difference(first, second, interval)
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    p_value = mcnemar(only_first, only_second)
    return Difference(first, second, interval, only_first, only_second, p_value)


def _entries(evaluations: Sequence[Evaluation]) -> list[Entry]:
    """Return one entry for runs that differ only in the seed, else one for each evaluation."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(_settings_key(evaluation), []).append(evaluation)
    entries: list[Entry] = []
    for members in groups.values():
        by_seed: dict[object, Evaluation] = {}
        for member in members:
            by_seed.setdefault(member.seed, member)
        repeated = [member for member in members if member is not by_seed[member.seed]]
        # Different weights of one seed come from different code: such runs are not grouped.
        if len(by_seed) > 1 and all(
            member.record["checkpoint"]["sha256"]
            == by_seed[member.seed].record["checkpoint"]["sha256"]
            for member in repeated
        ):
            runs = tuple(by_seed.values())
            entries.append(Entry(_group_name(runs), runs))
            members = repeated
        entries += [Entry(member.record["exp_name"], (member,)) for member in members]
    names = Counter(entry.name for entry in entries)
    return [
        entry if names[entry.name] == 1 else replace(entry, name=_unique_name(entry))
        for entry in entries
    ]


def _settings_key(evaluation: Evaluation) -> str:
    """Return a string that is equal for runs that differ only in name and seed."""
    training = evaluation.record["training"]
    if training is None:  # nothing is known of a bare state dict
        return str(evaluation.path)
    settings = {**modernize_settings(training["settings"]), "seed": None}
    key = {**training, "exp_name": None, "settings": settings}
    return json.dumps([evaluation.record["model"], key], sort_keys=True)


def _group_name(runs: Sequence[Evaluation]) -> str:
    """Return the common name of runs whose names differ in the seed or the array task."""
    trainings = [training for run in runs if (training := run.record["training"])]
    stems = {re.sub(r"[_.-]*[0-9]+$", "", training["exp_name"]) for training in trainings}
    name = stems.pop() if len(stems) == 1 else ""
    saved = trainings[0]["saved"] or "of unknown epochs"
    epoch = "" if saved == "best" else f", {saved}"
    return f"{name or trainings[0]['exp_name'] + '…'} ({len(runs)} seeds{epoch})"


def _unique_name(entry: Entry) -> str:
    """Return the path of the entry's first metrics file, without its ending."""
    path = relative_to_root(entry.runs[0].path).removesuffix("_metrics.json")
    return path + (f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else "")
