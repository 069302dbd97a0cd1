"""Checks of JSON against typed definitions."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import pytest

from utils.records.typed import check_type


class Inner(TypedDict):
    n: int
    share: float | None


class Outer(TypedDict):
    name: str
    inner: list[Inner]
    more: NotRequired[Mapping[str, int]]
    anything: object
    whole: dict[str, Any]


GOOD = {
    "name": "a",
    "inner": [{"n": 1, "share": 0.5}, {"n": 2, "share": None}, {"n": 3, "share": 1}],
    "more": {"x": 1},
    "anything": [],
    "whole": {"y": "z"},
    "unknown": 1,
}


def test_what_fits():
    check_type(GOOD, Outer)
    check_type({name: value for name, value in GOOD.items() if name != "more"}, Outer)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": 3}, "name is '3', expected str"),
        ({"inner": {}}, "inner is '{}', expected a list"),
        ({"inner": [{"n": 1}]}, r"inner\[0\] lacks share"),
        ({"inner": [{"n": True, "share": None}]}, r"inner\[0\].n is 'True', expected int"),
        ({"inner": [{"n": 1, "share": "x"}]}, r"inner\[0\].share is 'x', expected float"),
        ({"more": {"x": "y"}}, "more.x is 'y', expected int"),
        ({"whole": None}, "whole is 'None', expected an object"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        check_type(GOOD | change, Outer)


def test_a_missing_field_is_named():
    with pytest.raises(TypeError, match="^it lacks anything$"):
        check_type({}, Outer)
    with pytest.raises(TypeError, match="expected an object"):
        check_type([], Outer)
