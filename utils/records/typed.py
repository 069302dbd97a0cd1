"""Check JSON against a typed definition, so that an odd field is a sentence, not a traceback."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def check_type(value: object, expected: Any, name: str = "it") -> None:
    """Check ``value`` against a TypedDict, a list, a mapping, a union or a class, recursively.

    Keys that a TypedDict does not have are ignored: later versions may add some.

    :raises TypeError: it does not fit; the sentence names the field and its value.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if expected in (Any, object):
        return
    if is_typeddict(expected):
        _require(isinstance(value, Mapping), value, "an object", name)
        assert isinstance(value, Mapping)
        for key in sorted(expected.__required_keys__ - value.keys()):
            raise TypeError(f"{name} lacks {key}")
        for key, hint in get_type_hints(expected).items():
            if key in value:
                check_type(value[key], hint, key if name == "it" else f"{name}.{key}")
    elif origin in (Union, types.UnionType):
        if not any(_fits(value, each) for each in arguments):
            check_type(value, next(each for each in arguments if each is not type(None)), name)
    elif origin in (list, Sequence):
        _require(isinstance(value, list), value, "a list", name)
        assert isinstance(value, list)
        for number, each in enumerate(value):
            check_type(each, arguments[0], f"{name}[{number}]")
    elif origin in (dict, Mapping):
        _require(isinstance(value, Mapping), value, "an object", name)
        assert isinstance(value, Mapping)
        for key, each in value.items():
            check_type(each, arguments[1], f"{name}.{key}")
    else:
        classes = (int, float) if expected is float else expected
        fits = isinstance(value, classes) and (expected is bool or not isinstance(value, bool))
        _require(fits, value, expected.__name__, name)


def _fits(value: object, expected: Any) -> bool:
    try:
        check_type(value, expected)
    except TypeError:
        return False
    return True


def _require(fits: bool, value: object, expected: str, name: str) -> None:
    if not fits:
        raise TypeError(f"{name} is {str(value)[:50]!r}, expected {expected}")
