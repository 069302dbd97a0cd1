"""Evaluations side by side: ranked within each test set, and the differences of each two."""

import csv
import hashlib
import io
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from utils.evaluations import Predictions
from utils.files import recorded
from utils.intervals import Interval, holm, mcnemar, of_accuracy, of_difference
from utils.tables import interval, markdown, number, settings_text, title

#: Of a page's ranking; the CSV has all.
COLUMNS = (
    "balanced_accuracy",
    "f1",
    "cross_entropy",
    "brier",
    "expected_calibration_error",
)
#: Up to so many entries each two are compared; of more, which would fill pages, each with the best.
ALL_PAIRS = 10


@dataclass(frozen=True)
class Entry:
    """A line of a ranking: one evaluation, or those of trainings that differ in their seed only."""

    name: str
    runs: tuple[Predictions, ...]

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each image was predicted right, bool (runs, N)."""
        return np.stack([run.right for run in self.runs])

    @property
    def layers(self) -> str:
        """The network, such as ``SMLP 784-77-77-77-77-6``."""
        return str(self.runs[0].record["model"]["layers"])

    @property
    def accuracy(self) -> float:
        """The mean of the runs'."""
        return float(self.right.mean())

    @cached_property
    def interval(self) -> Interval:
        """Of the accuracy: Wilson's, or of several runs the bootstrap's over images and seeds."""
        if len(self.runs) > 1:
            return of_accuracy(self.right, self.runs[0].labels)
        low, high = self.runs[0].record["intervals"]["accuracy"]
        return low, high

    def values(self, metric: str) -> list[float | None]:
        """A metric of each run; ``None`` where it is undefined."""
        return [numbers(run.record)[metric] for run in self.runs]

    def text(self, metric: str) -> str:
        """A metric for the page: of several runs their mean and standard deviation."""
        mean, deviation = mean_and_deviation(self.values(metric))
        return number(mean) if len(self.runs) == 1 else f"{number(mean)} ± {number(deviation)}"


@dataclass(frozen=True)
class Difference:
    """Two entries of one ranking, the better one first.

    :ivar only_first: images that only the first gets right; ``None`` where either is several runs,
        as is the p-value of McNemar's test.
    :ivar adjusted: the p-value after Holm's correction for all the differences of the test set.
    """

    first: Entry
    second: Entry
    interval: Interval
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None
    adjusted: float | None = None


@dataclass(frozen=True)
class TestSet:
    """The evaluations of one test set, which alone may be ranked."""

    __test__ = False  # to pytest the name looks like a test's

    dataset: Mapping[str, str]
    images: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """The dataset, and the beginning of a hash over the hashes of its images and labels."""
        both = self.entries[0].runs[0].test_set
        digest = hashlib.sha256(both.encode()).hexdigest()[:8]
        return f"{self.dataset['name']} ({self.images} images, {digest})"

    @cached_property
    def ranks(self) -> list[int]:
        """1 for the best; equal accuracies share a rank."""
        accuracies = [entry.accuracy for entry in self.entries]
        return [1 + sum(other > accuracy for other in accuracies) for accuracy in accuracies]

    @cached_property
    def differences(self) -> list[Difference]:
        """Of each two entries; of many, of the best and each other one."""
        labels = self.entries[0].runs[0].labels
        found: list[dict[str, Any]] = []
        pairs = combinations(self.entries, 2)
        for first, second in pairs if len(self.entries) <= ALL_PAIRS else self._with_the_best():
            pair: dict[str, Any] = {"first": first, "second": second}
            pair["interval"] = of_difference(first.right, second.right, labels)
            if len(first.runs) == len(second.runs) == 1:
                pair["only_first"] = int((first.right & ~second.right).sum())
                pair["only_second"] = int((second.right & ~first.right).sum())
                pair["p_value"] = mcnemar(pair["only_first"], pair["only_second"])
            found.append(pair)
        tested = [pair for pair in found if "p_value" in pair]
        for pair, adjusted in zip(tested, holm([p["p_value"] for p in tested]), strict=True):
            pair["adjusted"] = adjusted
        return [Difference(**pair) for pair in found]

    def _with_the_best(self) -> Iterator[tuple[Entry, Entry]]:
        return ((self.entries[0], other) for other in self.entries[1:])

    def record(self) -> dict[str, Any]:
        """All its numbers, as plain values."""
        return {
            "dataset": dict(self.dataset),
            "images": self.images,
            "ranking": [
                {
                    "rank": rank,
                    "name": entry.name,
                    "runs": [recorded(run.path) for run in entry.runs],
                    "layers": entry.layers,
                    "accuracy": entry.accuracy,
                    "interval": list(entry.interval),
                }
                for rank, entry in zip(self.ranks, self.entries, strict=True)
            ],
            "differences": [
                {
                    "first": pair.first.name,
                    "second": pair.second.name,
                    "difference": pair.first.accuracy - pair.second.accuracy,
                    "interval": list(pair.interval),
                    "only_first": pair.only_first,
                    "only_second": pair.only_second,
                    "mcnemar_p": pair.p_value,
                    "holm_p": pair.adjusted,
                }
                for pair in self.differences
            ],
        }


def test_sets(evaluations: Sequence[Predictions]) -> list[TestSet]:
    """The evaluations by test set (by the hashes of its images and labels), each ranked."""
    groups: dict[str, list[Predictions]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.test_set, []).append(evaluation)
    return [
        TestSet(
            dataset={
                name: members[0].record["dataset"][name]
                for name in ("name", "images_sha256", "labels_sha256")
            },
            images=len(members[0].labels),
            entries=tuple(sorted(_entries(members), key=lambda entry: -entry.accuracy)),
        )
        for members in groups.values()
    ]


def _entries(evaluations: Sequence[Predictions]) -> list[Entry]:
    """One entry for trainings that differ in nothing but their seed; else one for each."""
    groups: dict[str, list[Predictions]] = {}
    for evaluation in evaluations:
        groups.setdefault(_all_but_the_seed(evaluation), []).append(evaluation)
    entries: list[Entry] = []
    for members in groups.values():
        by_seed: dict[Any, list[Predictions]] = {}
        for member in members:
            by_seed.setdefault(_seed(member), []).append(member)
        # Of weights that were evaluated twice, one evaluation belongs to the group.
        once = [each for each, *_ in by_seed.values()]
        again = [other for _, *others in by_seed.values() for other in others]
        if len(once) > 1 and all(_is_again(other, by_seed) for other in again):
            entries.append(Entry(_group_name(once), tuple(once)))
            members = again
        entries += [Entry(str(member.record["exp_name"]), (member,)) for member in members]
    names = Counter(entry.name for entry in entries)
    return [entry if names[entry.name] == 1 else _by_its_file(entry) for entry in entries]


def _by_its_file(entry: Entry) -> Entry:
    """The entry with a name that no other one has."""
    file = recorded(entry.runs[0].path).removesuffix("_metrics.json")
    more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
    return Entry(file + more, entry.runs)


def _all_but_the_seed(evaluation: Predictions) -> str:
    training = evaluation.record["training"]
    if not training:  # a bare state dict says nothing
        return str(evaluation.path)
    rest = {name: value for name, value in training.items() if name != "exp_name"}
    rest["settings"] = {k: v for k, v in training["settings"].items() if k != "seed"}
    return json.dumps([evaluation.record["model"], rest], sort_keys=True)


def _seed(evaluation: Predictions) -> Any:
    training = evaluation.record["training"]
    return training and training["settings"]["seed"]


def _is_again(evaluation: Predictions, by_seed: Mapping[Any, list[Predictions]]) -> bool:
    first = by_seed[_seed(evaluation)][0].record["checkpoint"]
    return bool(first["sha256"] == evaluation.record["checkpoint"]["sha256"])


def _group_name(members: Sequence[Predictions]) -> str:
    """After the trainings, which are named alike but for the seed or the task of a job array."""
    trainings = [member.record["training"] for member in members]
    stems = {re.sub(r"[_.-]*[0-9]+$", "", training["exp_name"]) for training in trainings}
    name = stems.pop() if len(stems) == 1 else ""
    saved = trainings[0]["saved"] or "of unknown epochs"
    epoch = "" if saved == "best" else f", {saved}"
    return f"{name or trainings[0]['exp_name'] + '…'} ({len(members)} seeds{epoch})"


def numbers(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric of an evaluation's record by its name."""
    groups = ("metrics", "probabilities", "label_distance")
    return {name: value for group in groups for name, value in record[group].items()}


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (of the sample; ``None`` of fewer than two)."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def markdown_page(compared: Sequence[TestSet], exp_name: str) -> str:
    """The comparison as Markdown: a matrix where there are several test sets, then each of them."""
    parts = [f"# {exp_name}"]
    if len(compared) > 1:
        parts += _matrix(compared)
    parts.append(f"![test errors with intervals]({exp_name}_comparison.png)")
    for test_set in compared:
        parts += [f"## {test_set.name}", _ranking(test_set), *_differences(test_set)]
        parts += ["Trained with", _trainings(test_set)]
    parts.append(
        f"Made by `DJSW/compare.py`; `{exp_name}_comparison.json` names the evaluations, the "
        "command and the code."
    )
    return "\n\n".join(parts) + "\n"


def _matrix(compared: Sequence[TestSet]) -> list[str]:
    """Network by test set; run by test set where a network has several runs on one."""
    sets = [test_set.name for test_set in compared]
    by_network: dict[str, dict[str, str]] = {}
    by_run: dict[str, dict[str, str]] = {}
    for test_set in compared:
        for rank, entry in zip(test_set.ranks, test_set.entries, strict=True):
            record = entry.runs[0].record
            text = entry.text("accuracy")
            cell = f"{f'**{text}**' if rank == 1 else text} ({interval(entry.interval)})"
            network = f"{record['model']['name']} ({record['username']})"
            by_network.setdefault(network, {}).setdefault(test_set.name, cell)
            by_run.setdefault(entry.name, {})[test_set.name] = cell
    runs = sum(len(test_set.entries) for test_set in compared)
    alone = sum(map(len, by_network.values())) == runs
    cells = by_network if alone else by_run
    rows = [[row, *(cells[row].get(each, "-") for each in sets)] for row in sorted(cells)]
    return [
        "Accuracy on each test set with its 95 % interval, the best of each column in bold.",
        markdown(("network" if alone else "run", *sets), rows),
        f"The {len(sets)} test sets differ, so nothing is ranked across them: {', '.join(sets)}.",
    ]


def _ranking(test_set: TestSet) -> str:
    rows = []
    for rank, entry in zip(test_set.ranks, test_set.entries, strict=True):
        accuracy = (entry.text("accuracy"), interval(entry.interval))
        others = map(entry.text, COLUMNS)
        rows.append([str(rank), entry.name, entry.layers, *accuracy, *others])
    header = ["", "run", "network", "accuracy", "95 % interval", *map(title, COLUMNS)]
    return markdown(header, rows)


def _differences(test_set: TestSet) -> list[str]:
    if not test_set.differences:
        return []
    rows = []
    for pair in test_set.differences:
        counts = (pair.only_first, pair.only_second)
        rows.append(
            (
                pair.first.name,
                pair.second.name,
                f"{pair.first.accuracy - pair.second.accuracy:+.4f}",
                "{:+.4f} to {:+.4f}".format(*pair.interval),
                *("-" if count is None else str(count) for count in counts),
                *map(_p_value, (pair.p_value, pair.adjusted)),
            )
        )
    tests = sum(pair.p_value is not None for pair in test_set.differences)
    header = ("A", "B", "A - B", "95 % interval", "only A right", "only B right", "p", "p, Holm")
    notes = ["Interval of the difference: paired bootstrap over images (and seeds)."]
    if tests:
        notes.append("p: McNemar's exact test.")
    if tests > 1:
        notes.append(f"Holm: corrected for the {tests} tests of this table.")
    if tests < len(rows):
        notes.append("McNemar's test is for two single runs; of several seeds the interval tells.")
    if len(test_set.entries) > ALL_PAIRS:
        notes.append(f"Of more than {ALL_PAIRS}, each is compared with the best.")
    return [markdown(header, rows), " ".join(notes)]


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def _trainings(test_set: TestSet) -> str:
    """How the networks were trained: who shares settings, but for the seed, shares a line."""
    lines: dict[str, list[str]] = {}
    for entry in test_set.entries:
        training = entry.runs[0].record["training"]
        text = "unknown: a bare state dict"
        if training:
            seeds = ", ".join(str(_seed(run)) for run in entry.runs)
            text = settings_text({**training["settings"], "seed": seeds})
        lines.setdefault(text, []).append(entry.name)
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in lines.items())


def table_csv(compared: Sequence[TestSet]) -> str:
    """A row an entry with every metric: mean, ends of the interval (of accuracy, and of single runs
    for all metrics), and standard deviation over the runs."""
    rows = []
    for test_set in compared:
        for rank, entry in zip(test_set.ranks, test_set.entries, strict=True):
            row: dict[str, Any] = {
                "dataset": test_set.dataset["name"],
                "images_sha256": test_set.dataset["images_sha256"],
                "labels_sha256": test_set.dataset["labels_sha256"],
                "images": test_set.images,
                "rank": rank,
                "name": entry.name,
                "network": entry.layers,
                "parameters": entry.runs[0].record["model"]["parameters"],
                "runs": len(entry.runs),
            }
            for metric in numbers(entry.runs[0].record):
                row[metric], deviation = mean_and_deviation(entry.values(metric))
                single = entry.runs[0].record["intervals"][metric]
                ends = single if len(entry.runs) == 1 else (None, None)
                if metric == "accuracy":
                    ends = entry.interval
                row[f"{metric}_low"], row[f"{metric}_high"] = ends
                row[f"{metric}_sd"] = deviation
            rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def charted(compared: Sequence[TestSet]) -> dict[str, list[tuple[str, float, float, float]]]:
    """For each test set the name, accuracy and interval of its entries."""
    return {
        test_set.name: [(entry.name, entry.accuracy, *entry.interval) for entry in test_set.entries]
        for test_set in compared
    }
