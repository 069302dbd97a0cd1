"""Aligned tables, and the text of numbers, metrics and settings."""

import math
from typing import Any

import pytest

from utils.report import tables


def test_align():
    rows = [("", "before", "after"), ("loss", "1.5", "10"), ("accuracy", "0.25", "")]
    assert tables.align(rows, right=(1,)) == [
        "          before  after",
        "loss         1.5  10",
        "accuracy    0.25",
    ]
    assert tables.align([("a", "b")], gap=" | ") == ["a | b"]
    assert tables.align([]) == []
    with pytest.raises(ValueError):
        tables.align([("a", "b"), ("a",)])


def test_markdown_is_aligned_and_escaped():
    assert tables.markdown(("", "a|b"), [("1", "long cell"), ("2", "")]).splitlines() == [
        "|     | a\\|b      |",
        "| --- | --------- |",
        "| 1   | long cell |",
        "| 2   |           |",
    ]


def test_numbers():
    assert [tables.number(value) for value in (None, math.nan, math.inf)] == ["-"] * 3
    assert [tables.number(value) for value in (0.12345, -2, 12345.6)] == [
        "0.1235",
        "-2.0000",
        "1.235e+04",
    ]
    assert tables.interval((0.5, 0.75)) == "0.5000 to 0.7500"
    assert tables.interval((0.5, None)) == "-"
    assert tables.with_deviation(0.5, None) == "0.5000"
    assert tables.with_deviation(0.5, 0.1) == "0.5000 ± 0.1000"


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1, "100.0 %"),
        (0.99999, "> 99.9 %"),
        (0.999, "99.9 %"),
        (0.5, "50.0 %"),
        (0.001, "0.1 %"),
        (1e-9, "< 0.1 %"),
        (0, "0.0 %"),
    ],
)
def test_percent(probability, text):
    assert tables.percent(probability) == text


def test_titles():
    assert tables.title("weighted_f1") == "weighted F1"
    assert tables.title("balanced_accuracy") == "balanced accuracy"


def test_confused_pairs_are_sorted_by_frequency():
    record: Any = {"classes": [4, 7, 9], "confusion": [[5, 0, 3], [1, 7, 0], [0, 4, 12]]}
    expected = [("9", "7", 4, 0.25), ("4", "9", 3, 0.375), ("7", "4", 1, 0.125)]
    assert tables.confused_pairs(record) == expected
    record["class_names"] = ["bag", "coat", "shirt"]
    assert tables.confused_pairs(record)[0] == ("shirt", "coat", 4, 0.25)


def test_settings_that_are_off_are_left_out():
    settings = {"lr": 0.1, "weight_decay": 0.0, "patience": None, "augmentation": {"nodes": 6}}
    assert tables.describe_settings(settings | {"seed": 0}) == "lr 0.1; nodes 6; seed 0"
