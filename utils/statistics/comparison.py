"""Comparisons of evaluations: a ranking per test set, and the differences of its entries."""

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations, islice
from typing import Any

import numpy as np

from utils.records.evaluation import Evaluation, EvaluationRecord, metric_values
from utils.records.files import relative_to_root
from utils.records.run import Run
from utils.records.typed import shown
from utils.statistics import intervals
from utils.statistics.intervals import Clusters, Interval

#: With more entries than this, only the best one is compared with the others.
ALL_PAIRS = 10


@dataclass(frozen=True)
class Entry:
    """A line of a ranking: one evaluation, or those of runs that differ only in the seed."""

    name: str
    runs: tuple[Evaluation, ...]
    clusters: Clusters

    @property
    def record(self) -> EvaluationRecord:
        """The record of the first run."""
        return self.runs[0].record

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
        """The interval of the accuracy, over other writers and, of several runs, seeds."""
        return intervals.accuracy_interval(self.correct, self.clusters)

    def mean_and_deviation(self, metric: str) -> tuple[float | None, float | None]:
        """Return mean and standard deviation of a metric over the runs."""
        return mean_and_deviation([metric_values(run.record)[metric] for run in self.runs])


@dataclass(frozen=True)
class Difference:
    """The difference of two entries' accuracies, the better one first, with its interval.

    :ivar only_first: images that only the first entry predicts correctly; ``None``, like the
        p-values, if an entry has several runs.
    :ivar p: p-value of :func:`.intervals.paired_p`; ``holm_p`` is adjusted for all tests of a test
        set.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None
    holm_p: float | None = None


@dataclass(frozen=True)
class TestSet:
    """The entries of one test set, the most accurate one first."""

    __test__ = False  # not a test class of pytest

    entries: tuple[Entry, ...]
    clusters: Clusters

    @property
    def dataset(self) -> Mapping[str, object]:
        """The name of the dataset, and the hashes of its images and labels."""
        dataset: Mapping[str, object] = self.entries[0].record["dataset"]
        return {name: dataset[name] for name in ("name", "images_sha256", "labels_sha256")}

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
    def ranking(self) -> list[tuple[int, Entry]]:
        """The entries with their ranks, from 1; equal accuracies share a rank."""
        accuracies = [entry.accuracy for entry in self.entries]
        return [(1 + accuracies.index(entry.accuracy), entry) for entry in self.entries]

    @cached_property
    def differences(self) -> list[Difference]:
        """The differences of all pairs; with many entries, of the best and each other one."""
        count = None if len(self.entries) <= ALL_PAIRS else len(self.entries) - 1
        found = [_difference(*pair) for pair in islice(combinations(self.entries, 2), count)]
        p_values = [each.p for each in found if each.p is not None]
        adjusted = iter(intervals.holm(p_values))
        return [each if each.p is None else replace(each, holm_p=next(adjusted)) for each in found]

    def record(self) -> dict[str, object]:
        """Return all numbers as plain values for JSON."""
        return {
            "dataset": self.dataset,
            "images": len(self.labels),
            "clusters": {"kind": self.clusters.kind, "count": self.clusters.count},
            "ranking": [
                {
                    "rank": rank,
                    "name": entry.name,
                    "runs": [relative_to_root(run.path) for run in entry.runs],
                    "layers": entry.record["model"]["layers"],
                    "accuracy": entry.accuracy,
                    "interval": list(entry.interval),
                }
                for rank, entry in self.ranking
            ],
            "differences": list(map(asdict, self.differences)),
        }


def rank_by_test_set(
    evaluations: Sequence[Evaluation], clusters_of: Callable[[Evaluation], Clusters]
) -> list[TestSet]:
    """Return the ranked entries of each test set, identified by the hashes of images and labels."""
    found = []
    for members in _group(evaluations, lambda evaluation: evaluation.test_set):
        clusters = clusters_of(members[0])
        entries = sorted(_entries(members, clusters), key=lambda entry: -entry.accuracy)
        found.append(TestSet(tuple(entries), clusters))
    return found


def rank_by_validation(
    runs: Sequence[Run], count: Callable[[str, str, str], int | None]
) -> list[dict[str, Any]]:
    """Return a row for each run, or for those that differ only in name and seed: plain values.

    Those with the same validation images follow each other, the lowest mean loss first.

    :param count: returns the number of validation images, ``None`` if it is unknown, of a dataset,
        the hash of its images and a fold, which may be empty.
    """
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run["settings"].items() if value is not None}
        seed, fold = settings.pop("seed", None), str(settings.get("fold", ""))
        teachers = [each["sha256"] for each in run.get("teachers", [])]
        same = [run["username"], run["model"], run["starting_weights"], teachers, settings]
        data = run["dataset"]
        key = data["name"], data["images_sha256"], fold, json.dumps(same, sort_keys=True)
        while any(seed == other["settings"].get("seed") for other in groups.get(key, [])):
            key = (*key[:3], key[3] + " again")  # no seed counts twice in a mean
        groups.setdefault(key, []).append(run)
    rows = [_validation_row(group, count(*key[:3])) for key, group in groups.items()]
    return sorted(rows, key=lambda row: (row["validation_set"], row["validation_loss"]))


def _validation_row(runs: Sequence[Any], images: int | None) -> dict[str, Any]:
    """Return mean and standard error over the runs, and the interval over the images alone."""
    data, settings, model = (runs[0][name] for name in ("dataset", "settings", "model"))
    fold = f", fold {settings['fold']}" if settings.get("fold") else ""
    number = f"{images or 'unknown'} validation images{fold}, {data['images_sha256'][:8]}"
    name = re.sub(r"[_.-]*[0-9]+$", "", runs[0]["exp_name"]) + f" ({len(runs)} seeds)"
    row: dict[str, Any] = {
        "validation_set": shown(f"{data['name']} ({number})"),
        "name": name if len(runs) > 1 else runs[0]["exp_name"],
        "network": shown(f"{model['name']} ({runs[0]['username']})"),
        "runs": ", ".join(run["exp_name"] for run in runs),
        "epochs": ", ".join(str(run["results"]["best"]["epoch"]) for run in runs),
    }
    for metric in ("validation_loss", "validation_accuracy"):
        values = [run["results"]["best"][metric] for run in runs]
        row[metric], deviation = mean_and_deviation(values)
        row[f"{metric}_se"] = None if deviation is None else deviation / math.sqrt(len(runs))
    correct, ends = round(row["validation_accuracy"] * (images or 0)), (None, None)
    low, high = intervals.wilson(correct, images) if images else ends
    row |= {"validation_accuracy_low": low, "validation_accuracy_high": high}
    seeds = ", ".join(str(run["settings"].get("seed")) for run in runs)
    return row | {"settings": {**settings, "seed": seeds, **model["arguments"]}}


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation, both ``None`` if a value is undefined.

    The deviation is also ``None`` for fewer than two values.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _difference(first: Entry, second: Entry) -> Difference:
    """Compare two entries; the sign-flip test is for two single runs."""
    clusters = first.clusters
    interval = intervals.difference_interval(first.correct, second.correct, clusters)
    found = Difference(first.name, second.name, first.accuracy - second.accuracy, interval)
    if len(first.runs) > 1 or len(second.runs) > 1:
        return found
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    sums = clusters.sums(np.concatenate([first.correct, second.correct]))
    p = intervals.paired_p(sums[:, 0] - sums[:, 1])
    return replace(found, only_first=only_first, only_second=only_second, p=p)


def _group(
    evaluations: Sequence[Evaluation], key: Callable[[Evaluation], object]
) -> list[list[Evaluation]]:
    groups: dict[object, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(key(evaluation), []).append(evaluation)
    return list(groups.values())


def _entries(evaluations: Sequence[Evaluation], clusters: Clusters) -> list[Entry]:
    """Return one entry for runs that differ only in the seed, else one for each evaluation."""
    entries: list[Entry] = []
    for members in _group(evaluations, _settings_key):
        seeds = _group(members, lambda member: member.seed)
        runs = tuple(run for seed in seeds if (run := _run_of_group(seed, members)))
        # Different weights of one seed come from different code: such runs are not grouped.
        if len(seeds) == len(runs) > 1:
            entries.append(Entry(_group_name(runs), runs, clusters))
            rest = [each for each in members if not any(each is run for run in runs)]
            entries += [
                Entry(f"{each.record['exp_name']} (seed {each.seed} again)", (each,), clusters)
                for each in rest
            ]
        else:
            entries += [Entry(_name(each), (each,), clusters) for each in members]
    names = Counter(entry.name for entry in entries)
    return [
        entry if names[entry.name] == 1 else replace(entry, name=_unique_name(entry))
        for entry in entries
    ]


def _name(evaluation: Evaluation) -> str:
    """Return the name of an evaluation; an ensemble's says so."""
    count = len(evaluation.record.get("members", ()))
    return evaluation.record["exp_name"] + (f" (ensemble of {count})" if count else "")


def _run_of_group(seed: Sequence[Evaluation], members: Sequence[Evaluation]) -> Evaluation | None:
    """Return the run of one seed that belongs to the group: the one named like most members.

    None if several with different weights are.
    """
    stem = Counter(_stem(member) for member in members).most_common(1)[0][0]
    named = [each for each in seed if _stem(each) == stem] or list(seed)
    return named[0] if len({each.record["checkpoint"]["sha256"] for each in named}) == 1 else None


def _stem(evaluation: Evaluation) -> str:
    """Return the name of the run without the number of the seed or the array task."""
    training = evaluation.record["training"]
    return re.sub(r"[_.-]*[0-9]+$", "", training["exp_name"]) if training else ""


def _settings_key(evaluation: Evaluation) -> str:
    """Return a string that is equal for runs that differ only in name and seed."""
    training = evaluation.record["training"]
    if training is None:  # nothing is known of a bare state dict
        return str(evaluation.path)
    used = training["settings"].items()
    settings = {name: value for name, value in used if value is not None and name != "seed"}
    key = {**training, "exp_name": None, "settings": settings}
    return json.dumps([evaluation.record["model"], key], sort_keys=True)


def _group_name(runs: Sequence[Evaluation]) -> str:
    """Return the common name of runs whose names differ in the seed or the array task."""
    origins = [origin for run in runs if (origin := run.record["training"])]
    first, saved = origins[0]["exp_name"], origins[0]["saved"] or "of unknown epochs"
    stems = {_stem(run) for run in runs}
    name = stems.pop() if len(stems) == 1 else ""
    epoch = "" if saved == "best" else f", {saved}"
    return f"{name or first + '…'} ({len(runs)} seeds{epoch})"


def _unique_name(entry: Entry) -> str:
    """Return the path of the entry's first metrics file, without its ending."""
    path = relative_to_root(entry.runs[0].path).removesuffix("_metrics.json")
    return path + (f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else "")
