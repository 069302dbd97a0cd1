"""Checks of JSON against typed definitions."""

import os
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import pytest
import torch

from utils.records.typed import (
    check_type,
    content_sha256,
    read_json,
    require_plain,
    require_record,
    shown,
)


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
    "unknown": "a diff\n",
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
        ({"name": "\ud800"}, r"name is '\\\\ud800', expected printable text"),
        (
            {"name": "\x1b[2J\n|a|b|"},
            r"name is '\\\\x1b\[2J\\\\n\|a\|b\|', expected printable text",
        ),
        ({"more": {"\n": 1}}, r"a name in more is '\\\\n', expected printable text"),
        ({"whole": {"y": {"z": "\n"}}}, r"whole.y.z is '\\\\n', expected printable text"),
        ({"whole": {"\x1b": 1}}, r"a name in whole is '\\\\x1b', expected printable text"),
        ({"anything": "\ud800"}, r"anything is '\\\\ud800', expected printable text"),
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


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else 1


CYCLE: list[object] = []
CYCLE.append(CYCLE)
WIDE: list[Any] = [1]
for _ in range(10):
    WIDE = 10 * [WIDE]  # a hundred objects that unfold to ten billion


def test_plain_values():
    require_plain({"a": [1, 2.5, True, None, "x", (1,), {}], "b": float("inf"), "c": nested(40)})
    require_plain([torch.zeros(1)], torch.Tensor)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (CYCLE, "nested more than 50 levels deep"),
        (nested(60), "nested more than 50 levels deep"),
        (WIDE, "more than 1,000,000 values"),
        ([torch.zeros(1)], "of type Tensor"),
        ({"a": b"x"}, "of type bytes"),
        ({"a": {1}}, "of type set"),
        ({float("nan"): 1}, "a key that is no text"),
        ([2**64], "more than 64 bits"),
        ([-(10**5000)], "more than 64 bits"),
        ([1j], "of type complex"),
    ],
    ids=lambda value: "",
)
def test_what_is_not_plain(value, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        require_plain(value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "Expecting value"),
        (b'{"a": NaN}', "nan, which is not JSON"),
        (b'{"a": 1e999}', "inf, which is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (100_000 * b"[", "nested more than 50"),
        (50_000 * b"[" + 50_000 * b"]", "nested more than 50"),
        (bytes(2**25 + 1), "more than 33,554,432 bytes"),
        (None, "no regular file"),
    ],
    ids=range(9),
)
def test_files_that_are_no_json(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    path.write_bytes(content) if content is not None else os.mkfifo(path)
    with pytest.raises(ValueError, match=sentence):
        read_json(path)


def test_digest_is_of_everything():
    content = {"a": torch.arange(3.0), "b": [1, {"c": None}], "sha256": "whatever"}
    expected = content_sha256(content)
    assert content_sha256(dict(reversed(content.items())) | {"sha256": ""}) == expected
    others = (
        {**content, "a": torch.arange(3.0).double()},
        {**content, "a": torch.arange(3.0)[:, None]},
        {**content, "a": torch.tensor([0.0, 1.0, -2.0])},
        {**content, "a": torch.arange(3.0).view(torch.int32)},
        {**content, "b": [1, {"c": False}]},
        {**content, "b": [1.0, {"c": None}]},
        {**content, "b": [True, {"c": None}]},
        {**content, "d": 1},
    )
    assert len({expected, *map(content_sha256, others)}) == 9


def test_text_of_files_is_escaped_and_cut():
    assert shown("a\nb\x1b[31m\ud800") == r"a\nb\x1b[31m\ud800"
    assert len(shown("\x1b" * 10**6)) <= 200 and len(shown(10**5000)) <= 200
    assert len(shown(nested(500))) <= 200


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a\n", ".a", "a" * 101])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="no name of an experiment"):
        require_record({"exp_name": name}, dict)
