"""Rankings, groups of seeds and differences of evaluations made by hand."""

import copy
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.records.evaluation import Evaluation, metric_values
from utils.report.comparison_page import comparison_csv, comparison_page, validation_page
from utils.statistics import comparison, intervals
from utils.statistics.comparison import (
    mean_and_deviation,
    rank_by_test_set,
    rank_by_validation,
)

LABELS = np.resize([0, 1], 40)
SINGLE = intervals.Clusters("images", np.arange(40))
METRICS = ("balanced_accuracy", "f1", "cross_entropy", "brier", "expected_calibration_error")


def evaluation(name, errors, *, seed=None, weights=None, saved="best", lr=0.1, images="i", width=2):
    """Return an evaluation whose first ``errors`` predictions are wrong."""
    predicted = LABELS.copy()
    predicted[:errors] ^= 1
    accuracy = 1 - errors / len(LABELS)
    training = {"exp_name": name, "settings": {"lr": lr, "seed": seed}, "saved": saved}
    record: Any = {
        "exp_name": name,
        "username": "ann",
        "model": {"name": "M", "arguments": {"width": width}, "layers": "M 2-2", "parameters": 6},
        "checkpoint": {"sha256": weights or f"{name} {saved}"},
        "training": None if seed is None else training,
        "dataset": {"name": "d", "images_sha256": images, "labels_sha256": "l"},
        "metrics": {"accuracy": accuracy},
        "probabilities": dict.fromkeys(METRICS, accuracy),
        "label_distance": {"r2": None},
        "clusters": {"kind": "images", "count": len(LABELS)},
        "intervals": {"accuracy": list(intervals.wilson(len(LABELS) - errors, len(LABELS)))},
    }
    record["intervals"] |= dict.fromkeys((*METRICS, "r2"), (None, None))
    return Evaluation(Path(f"{name}_metrics.json"), record, LABELS, predicted)


def rank(evaluations):
    """Rank them, with every image a cluster."""
    return rank_by_test_set(evaluations, lambda evaluation: SINGLE)


def entries(*evaluations):
    (test_set,) = rank(evaluations)
    return [(entry.name, len(entry.runs)) for entry in test_set.entries]


def test_ranks_and_differences():
    (test_set,) = rank([evaluation("a", 9), evaluation("b", 3), evaluation("c", 3)])
    assert [entry.name for entry in test_set.entries] == ["b", "c", "a"]
    assert [rank for rank, _ in test_set.ranking] == [1, 1, 3]
    equal, first, second = test_set.differences
    assert (equal.only_first, equal.only_second, equal.p) == (0, 0, 1)
    for difference in (first, second):
        assert difference.difference == pytest.approx(6 / 40)
        assert (difference.only_first, difference.only_second) == (6, 0)
        assert difference.p == pytest.approx(2 / 2**6)
        assert difference.holm_p == pytest.approx(3 * 2 / 2**6)
        low, high = difference.interval
        assert 0 < low < difference.difference < high


def test_only_equal_images_are_one_test_set():
    found = rank([evaluation("a", 1), evaluation("b", 2, images="other")])
    assert [len(test_set.entries) for test_set in found] == [1, 1]
    assert found[0].name != found[1].name and not found[0].differences
    page = comparison_page(found, "x")
    assert f"nothing is ranked across them: {found[0].name}, {found[1].name}." in page


def test_runs_that_differ_in_the_seed_are_one_entry():
    seeds = [evaluation(f"run_{seed}", seed, seed=seed) for seed in (1, 2, 3)]
    assert entries(*seeds) == [("run (3 seeds)", 3)]
    assert entries(*seeds, evaluation("run_4", 9, seed=4, lr=0.2)) == [
        ("run (3 seeds)", 3),
        ("run_4", 1),
    ]
    earlier, later = evaluation("run_5", 1, seed=5), evaluation("run_6", 1, seed=6)
    earlier.record["training"]["settings"]["patience"] = None  # earlier records have it
    assert entries(earlier, later) == [("run (2 seeds)", 2)]
    last = [evaluation(f"run_{seed}", 1, seed=seed, saved="epoch_9") for seed in (1, 2)]
    assert entries(*last) == [("run (2 seeds, epoch_9)", 2)]
    assert entries(evaluation("x_1", 1, seed=1), evaluation("y_2", 1, seed=2)) == [
        ("x_1… (2 seeds)", 2)
    ]


def test_one_seed_twice():
    first, second = evaluation("a_1", 1, seed=1), evaluation("a_2", 2, seed=2)
    again = evaluation("again", 1, seed=1, weights="a_1 best")
    assert sorted(entries(first, second, again)) == [
        ("a (2 seeds)", 2),
        ("again (seed 1 again)", 1),
    ]
    other = evaluation("other", 1, seed=1)
    assert sorted(entries(first, second, other)) == [
        ("a (2 seeds)", 2),
        ("other (seed 1 again)", 1),
    ]
    third = evaluation("a_3", 1, seed=1)  # which of a_1 and a_3 belongs to the group?
    assert sorted(entries(first, second, third)) == [("a_1", 1), ("a_2", 1), ("a_3", 1)]


def test_equal_names_become_paths():
    one, two = evaluation("a", 1), evaluation("a", 2, lr=0.2)
    two = Evaluation(Path("folder/a_metrics.json"), two.record, two.labels, two.predicted)
    assert [name.split("/")[-1] for name, _ in entries(one, two)] == ["a", "a"]
    assert len({name for name, _ in entries(one, two)}) == 2


def test_many_entries_are_compared_with_the_best(monkeypatch):
    monkeypatch.setattr(comparison, "ALL_PAIRS", 2)
    (test_set,) = rank([evaluation(name, k) for k, name in enumerate("abc")])
    pairs = [(each.first, each.second) for each in test_set.differences]
    assert pairs == [("a", "b"), ("a", "c")]
    assert "compared with the best one only" in comparison_page([test_set], "x")


def test_seeds_have_mean_deviation_and_an_interval():
    runs = [evaluation(f"run_{seed}", errors, seed=seed) for seed, errors in ((1, 4), (2, 8))]
    (test_set,) = rank([*runs, evaluation("alone", 20)])
    entry = test_set.entries[0]
    assert entry.accuracy == pytest.approx(0.85)
    assert entry.mean_and_deviation("accuracy") == pytest.approx((0.85, 0.05 * 2**0.5))
    assert entry.mean_and_deviation("r2") == (None, None)
    assert entry.interval == intervals.accuracy_interval(entry.correct, SINGLE)
    (difference,) = test_set.differences
    assert difference.p is difference.holm_p is difference.only_first is None
    page = comparison_page([test_set], "x")
    assert "| 1   | run (2 seeds) | M 2-2   | 0.8500 ± 0.0707 |" in page
    assert "- run (2 seeds): lr 0.1; seed 1, 2\n- alone: unknown: a bare state dict" in page
    row, single = csv.DictReader(io.StringIO(comparison_csv([test_set])))
    assert [row[f"accuracy_{end}"] for end in ("low", "high")] == list(map(str, entry.interval))
    assert (row["runs"], row["f1_low"], row["r2"], single["accuracy_sd"]) == ("2", "", "", "")
    assert set(metric_values(entry.record)) < set(row)


def run(name, loss, *, seed=1, accuracy=0.5, lr=0.1, images="i", fold=None):
    return {
        "exp_name": name,
        "username": "ann",
        "model": {"name": "M", "arguments": {"width": 2}},
        "dataset": {"name": "d", "file": f"{name}.h5", "images_sha256": images},
        "settings": {"lr": lr, "seed": seed} | ({"fold": fold} if fold else {"patience": None}),
        "starting_weights": None,
        "results": {"best": {"epoch": 3, "validation_loss": loss, "validation_accuracy": accuracy}},
    }


def test_runs_are_ranked_by_validation():
    runs: Any = [
        run("a_1", 0.4, accuracy=0.9),
        run("a_2", 0.2, seed=2, accuracy=0.7),
        run("copy", 0.4, accuracy=0.9),  # of a_1
        run("b", 0.1, lr=0.2),
        run("c", 0.5, images="other"),
        run("d", 0.6, fold="1/5"),
    ]
    del runs[1]["settings"]["patience"]  # as in earlier records
    asked = []

    def count(*images):
        asked.append(images)
        return 40

    rows = rank_by_validation(runs, count)
    assert {("d", "i", ""), ("d", "other", ""), ("d", "i", "1/5")} == set(asked)
    sets = [row["validation_set"] for row in rows]
    assert len(set(sets)) == 3 and sets == sorted(sets)
    group = [row for row in rows if row["validation_set"] == "d (40 validation images, i)"]
    assert [row["name"] for row in group] == ["b", "a (2 seeds)", "copy"]
    assert group[1]["validation_loss"] == pytest.approx(0.3)
    assert group[1]["validation_loss_se"] == pytest.approx(0.1)
    ends = [group[1][f"validation_accuracy_{end}"] for end in ("low", "high")]
    assert ends == list(intervals.wilson(32, 40))
    assert group[0]["validation_loss_se"] is None
    assert (group[1]["runs"], group[1]["epochs"]) == ("a_1, a_2", "3, 3")
    page = validation_page(rows, "x", "")
    assert "- a (2 seeds): lr 0.1; seed 1, 2; width 2\n" in page
    assert "0.3000 ± 0.1000 | 0.8000 ± 0.1000 | " in page and "Left out" not in page
    (row,) = rank_by_validation([runs[0]], lambda *images: None)
    assert row["validation_accuracy_low"] is None and "(unknown validation images" in str(row)
    assert "| -  " in validation_page([row], "x", "y (failed)")


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 3.0]) == pytest.approx((2, 2**0.5))
    assert mean_and_deviation([1.0]) == (1, None)
    assert mean_and_deviation([1.0, None]) == (None, None)


def test_record_is_plain():
    (test_set,) = rank([evaluation("a", 1), evaluation("b", 2)])
    record: dict[str, Any] = copy.deepcopy(test_set.record())
    assert record["dataset"] == {"name": "d", "images_sha256": "i", "labels_sha256": "l"}
    assert [row["rank"] for row in record["ranking"]] == [1, 2]
    (difference,) = record["differences"]
    assert (difference["first"], difference["only_first"], difference["only_second"]) == ("a", 1, 0)


def test_arguments_of_the_network_are_named_where_they_differ():
    found = rank([evaluation("a", 9, seed=1), evaluation("b", 3, seed=1, width=4)])
    page = comparison_page(found, "x", ["usps_0_6"])
    assert "- b: lr 0.1; seed 1; width 4\n- a: lr 0.1; seed 1; width 2" in page
    assert "Left out, since their data were out of reach: usps_0_6." in page
    assert "Left out" not in comparison_page(found, "x")
