"""Check JSON against a typed definition, so that an odd field is a sentence, not a traceback."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict


def check_type(value: Any, expected: Any, name: str = "it") -> None:
    """Check ``value`` against a TypedDict, list, mapping, class or ``X | None``, recursively.

    Keys that a TypedDict does not have are ignored: later versions may add some.

    :raises TypeError: it does not fit; the sentence names the field and its value.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if type(None) in arguments:
        if value is not None:
            check_type(value, arguments[0], name)
    elif is_typeddict(expected):
        _require(isinstance(value, Mapping), value, "an object", name)
        for key in sorted(expected.__required_keys__ - value.keys()):
            raise TypeError(f"{name} lacks {key}")
        for key, hint in get_type_hints(expected).items():
            if key in value:
                check_type(value[key], hint, key if name == "it" else f"{name}.{key}")
    elif origin in (list, Sequence):
        _require(isinstance(value, list), value, "a list", name)
        for number, each in enumerate(value):
            check_type(each, arguments[0], f"{name}[{number}]")
    elif origin in (dict, Mapping):
        _require(isinstance(value, Mapping), value, "an object", name)
        for key, each in value.items():
            check_type(each, arguments[1], f"{name}.{key}")
    elif expected not in (Any, object):
        fits = isinstance(value, (int, float) if expected is float else expected)
        odd = isinstance(value, bool) and expected is not bool  # a bool is an int to Python
        _require(fits and not odd, value, expected.__name__, name)


def _require(fits: bool, value: object, expected: str, name: str) -> None:
    if not fits:
        raise TypeError(f"{name} is {str(value)[:50]!r}, expected {expected}")
