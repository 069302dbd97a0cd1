"""The report of a comparison: a Markdown page and a CSV table."""

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from utils.records.evaluation import metric_values
from utils.report.tables import (
    csv_text,
    describe_settings,
    interval,
    markdown,
    title,
    with_deviation,
)
from utils.statistics.comparison import Difference, Entry, TestSet

#: Metrics of the page's rankings, after the accuracy; the CSV has all of them.
COLUMNS = ("balanced_accuracy", "f1", "cross_entropy", "brier", "expected_calibration_error")


def comparison_page(
    test_sets: Sequence[TestSet],
    exp_name: str,
    left_out: Iterable[str] = (),
    hard: Mapping[str, str] | None = None,
) -> str:
    """Return the page: an overview if there are several test sets, then a section for each.

    :param hard: what is said of images that every seed gets wrong, by the test set's name.
    """
    parts = [f"# {exp_name}"]
    if len(test_sets) > 1:
        parts += _overview(test_sets)
    parts.append(f"![test errors with intervals]({exp_name}_comparison.png)")
    for test_set in test_sets:
        clusters = test_set.clusters
        seeds = " (and over seeds)" * any(len(entry.runs) > 1 for entry in test_set.entries)
        note = f"Intervals: bootstrap over {clusters.count} {clusters.kind}{seeds}."
        if clusters.kind != "writers" and _knew_writers(test_set):
            note += " Some evaluations knew the writers; the test file that is here does not."
        parts += [f"## {test_set.name}", _ranking(test_set), note, *_differences(test_set)]
        parts += [text] if (text := (hard or {}).get(test_set.name)) else []
        parts += ["Trained with", _settings(test_set)]
    if left_out:
        parts.append(f"Left out, since their data were out of reach: {', '.join(left_out)}.")
    parts.append(
        f"Made by `DJSW/compare.py`; `{exp_name}_comparison.json` names the evaluations, the "
        "command and the code."
    )
    return "\n\n".join(parts) + "\n"


def comparison_csv(test_sets: Sequence[TestSet]) -> str:
    """Return a row per entry with every metric: mean, interval and standard deviation.

    Entries of several runs have an interval of the accuracy only.
    """
    return csv_text([_csv_row(each, *ranked) for each in test_sets for ranked in each.ranking])


def validation_page(rows: Sequence[Mapping[str, Any]], exp_name: str, left_out: str) -> str:
    """Return the page of :func:`.rank_by_validation`: a table for each set of images."""
    parts = [f"# {exp_name}", "Ranked by the validation loss of the best epoch, the lowest first."]
    header = ("", "run", "network", "validation loss", "accuracy", "95 % interval")
    for name in dict.fromkeys(row["validation_set"] for row in rows):
        cells: list[tuple[str, ...]] = []
        settings = []
        for row in (row for row in rows if row["validation_set"] == name):
            loss, accuracy = (
                with_deviation(row[f"validation_{key}"], row[f"validation_{key}_se"])
                for key in ("loss", "accuracy")
            )
            ends = interval([row[f"validation_accuracy_{end}"] for end in ("low", "high")])
            rank = str(len(cells) + 1)
            cells.append((rank, row["name"], row["network"], loss, accuracy, ends))
            settings.append(f"- {row['name']}: {describe_settings(row['settings'])}")
        parts += [f"## {name}", markdown(header, cells), "Trained with", "\n".join(settings)]
    parts.append(
        "Several seeds: mean ± standard error. Interval: Wilson's, over images and not seeds. The "
        "test set was not read."
    )
    if left_out:
        parts.append(f"Left out, since they are not finished: {left_out}.")
    return "\n\n".join(parts) + "\n"


def _knew_writers(test_set: TestSet) -> bool:
    runs = (run for entry in test_set.entries for run in entry.runs)
    return any(run.record["clusters"]["kind"] == "writers" for run in runs)


def _overview(test_sets: Sequence[TestSet]) -> list[str]:
    """Return the accuracies of each network, or of each run if a network has several on one set."""
    columns = [test_set.name for test_set in test_sets]
    by_network: dict[str, dict[str, str]] = {}
    by_entry: dict[str, dict[str, str]] = {}
    for test_set in test_sets:
        for rank, entry in test_set.ranking:
            text = _text(entry, "accuracy")
            cell = f"{f'**{text}**' if rank == 1 else text} ({interval(entry.interval)})"
            network = f"{entry.record['model']['name']} ({entry.record['username']})"
            by_network.setdefault(network, {}).setdefault(test_set.name, cell)
            by_entry.setdefault(entry.name, {})[test_set.name] = cell
    entries = sum(len(test_set.entries) for test_set in test_sets)
    unique = sum(map(len, by_network.values())) == entries
    cells = by_network if unique else by_entry
    rows = [[row, *(cells[row].get(name, "-") for name in columns)] for row in sorted(cells)]
    return [
        "Accuracy on each test set with its 95 % interval, the best of each column in bold.",
        markdown(("network" if unique else "run", *columns), rows),
        f"The {len(columns)} test sets differ, so nothing is ranked across them: "
        f"{', '.join(columns)}.",
    ]


def _ranking(test_set: TestSet) -> str:
    rows = []
    for rank, entry in test_set.ranking:
        accuracy = (_text(entry, "accuracy"), interval(entry.interval))
        others = (_text(entry, metric) for metric in COLUMNS)
        rows.append((str(rank), entry.name, entry.record["model"]["layers"], *accuracy, *others))
    header = ("", "run", "network", "accuracy", "95 % interval", *map(title, COLUMNS))
    return markdown(header, rows)


def _differences(test_set: TestSet) -> list[str]:
    if not test_set.differences:
        return []
    tests = sum(each.p is not None for each in test_set.differences)
    notes = []
    if tests:
        notes.append("p: exact sign-flip test over the same, which is McNemar's for single images.")
    if tests > 1:
        notes.append(f"Holm: corrected for the {tests} tests of this table.")
    if tests < len(test_set.differences):
        notes.append("The test compares single runs; for several seeds, see the interval.")
    if len(test_set.differences) < comb(len(test_set.entries), 2):
        notes.append("With this many entries, each is compared with the best one only.")
    header = ("A", "B", "A - B", "95 % interval", "only A correct", "only B correct")
    rows = [_difference_row(each) for each in test_set.differences]
    return [markdown((*header, "p", "p, Holm"), rows), " ".join(notes)]


def _difference_row(difference: Difference) -> tuple[str, ...]:
    low, high = difference.interval
    counts = (difference.only_first, difference.only_second)
    p_values = (difference.p, difference.holm_p)
    return (
        difference.first,
        difference.second,
        f"{difference.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        *("-" if count is None else str(count) for count in counts),
        *("-" if p is None else f"{p:.2g}" if p else "< 1e-300" for p in p_values),
    )


def _settings(test_set: TestSet) -> str:
    """Return a line for each set of training settings, with the entries that share it."""
    lines: dict[str, list[str]] = {}
    for entry in test_set.entries:
        text = "unknown: a bare state dict"
        if members := entry.record.get("members"):
            text = (
                f"an ensemble of {', '.join(Path(each['file']).name for each in members)}; "
                f"{entry.record['model']['parameters']:,} parameters, {len(members)} times the "
                "computation of a member"
            )
        if training := entry.record["training"]:
            seeds = ", ".join(str(run.seed) for run in entry.runs)
            own = _own_arguments(entry, test_set)
            text = describe_settings({**training["settings"], "seed": seeds, **own})
        lines.setdefault(text, []).append(entry.name)
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in lines.items())


def _own_arguments(entry: Entry, test_set: TestSet) -> dict[str, object]:
    """Return the arguments of the network that are others in another entry of the same network."""
    model = entry.record["model"]
    others = [other.record["model"] for other in test_set.entries]
    return {
        name: value
        for name, value in model["arguments"].items()
        if any(o["name"] == model["name"] and o["arguments"].get(name) != value for o in others)
    }


def _csv_row(test_set: TestSet, rank: int, entry: Entry) -> dict[str, object]:
    row: dict[str, object] = {
        "dataset": test_set.dataset["name"],
        **{name: test_set.dataset[name] for name in ("images_sha256", "labels_sha256")},
        "images": len(test_set.labels),
        "rank": rank,
        "name": entry.name,
        "network": entry.record["model"]["layers"],
        "parameters": entry.record["model"]["parameters"],
        "runs": len(entry.runs),
    }
    for metric in metric_values(entry.record):
        row[metric], deviation = entry.mean_and_deviation(metric)
        single = entry.record["intervals"][metric] if len(entry.runs) == 1 else (None, None)
        # The weighted recall is the accuracy by another name.
        of_accuracy = metric == "accuracy" or (metric == "weighted_recall" and len(entry.runs) == 1)
        ends = entry.interval if of_accuracy else single
        row[f"{metric}_low"], row[f"{metric}_high"] = ends
        row[f"{metric}_sd"] = deviation
    return row


def _text(entry: Entry, metric: str) -> str:
    return with_deviation(*entry.mean_and_deviation(metric))
