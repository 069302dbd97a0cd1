"""Check what a file holds before it is used: an odd field is a sentence, never a traceback."""

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from utils.errors import one_line

#: Largest JSON or CSV file, in bytes; the longest runs have 50 kB.
TEXT_LIMIT = 2**25
#: Largest file of tensors, in bytes: a state of 33 million parameters.
LIMIT = 2**29
#: Most values in a file (pickled, an epoch takes 15 operations), and most levels of nesting.
COUNT_LIMIT, DEPTH_LIMIT = 1_000_000, 50


def shown(value: object) -> str:
    """Return at most 200 characters of a value for a sentence, what cannot be printed escaped."""
    try:
        return one_line(str(value), 200)
    except (ValueError, RecursionError):  # an integer of over 4300 digits; nested without end
        return f"a value of type {type(value).__name__}"


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a file of plausible size; a pipe or a device is never opened.

    :raises ValueError: it is no file, or larger than ``limit`` bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(min(limit, path.stat().st_size) + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON of plausible size; raises as :func:`require_plain` does."""
    try:
        record = json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH_LIMIT} levels deep") from None
    require_plain(record, finite=True)
    return record


def require_record(record: Any, expected: Any, *leaf: type) -> None:
    """Check the content of a file: its fields, its name and its digest ``sha256``, if any.

    :raises ValueError, TypeError: it is damaged or does not fit; the sentence names the field.
    """
    require_plain(record, *leaf)
    check_type(record, expected)
    name = record.get("exp_name", "none")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{,99}", name):  # other names are made from it
        raise ValueError(f"exp_name is {shown(name)!r}, no name of an experiment")
    if "sha256" in record and record["sha256"] != content_sha256(record):
        raise ValueError("it was changed")


def require_plain(value: object, *leaf: type, finite: bool = False) -> None:
    """Check that a value consists of what JSON has, and of ``leaf``, in plausible size.

    :param finite: refuse NaN and infinity, which Python's JSON reads.
    :raises TypeError, ValueError: it does not, or is nested too deep or without end.
    """
    count, size, level = 0, 0, [value]
    for _ in range(DEPTH_LIMIT):
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                if not all(isinstance(key, str) for key in each):
                    raise TypeError("it holds a key that is no text")
                below += each.values()
            elif isinstance(each, (list, tuple)):
                below += each
            elif isinstance(each, leaf):
                size += _stored_bytes(each)
            elif isinstance(each, float) and finite and not math.isfinite(each):
                raise ValueError(f"it holds {each}, which is not JSON")
            elif isinstance(each, int) and abs(each) >= 2**64:
                raise ValueError("it holds an integer of more than 64 bits")
            elif each is not None and not isinstance(each, (str, int, float)):
                raise TypeError(f"it holds {shown(each)!r} of type {type(each).__name__}")
            if count + len(below) > COUNT_LIMIT or size > LIMIT:
                raise ValueError(f"it holds more than {COUNT_LIMIT:,} values or {LIMIT:,} bytes")
        if not below:
            return
        count, level = count + len(below), below
    raise ValueError(f"it is nested more than {DEPTH_LIMIT} levels deep")


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 over JSON of all plain values, and type, shape and bytes of all tensors.

    Without the field ``sha256``, which is where files keep it.
    """
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, default=_tensor_sha256)
    return hashlib.sha256(text.encode()).hexdigest()


def _stored_bytes(tensor: Any) -> int:
    """Return the bytes of a usual tensor, which are all stored: strides can claim any number."""
    usual = str(tensor.layout) == "torch.strided" and not (tensor.is_meta or tensor.is_quantized)
    if not usual or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise TypeError("it holds a tensor whose elements are not all stored")
    return int(tensor.nbytes)


def _tensor_sha256(tensor: Any) -> list[Any]:
    import torch  # not for JSON

    data = tensor.detach().cpu().flatten().view(torch.uint8).numpy().data
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest()]


def check_type(value: Any, expected: Any, name: str = "it") -> None:
    """Check ``value`` against a TypedDict, list, mapping, class or ``X | None``, recursively.

    Text must be printable. Keys that a TypedDict lacks are ignored: later versions may add some.

    :raises TypeError: it does not fit; the sentence names the field and its value.
    """
    origin, arguments, untyped = get_origin(expected), get_args(expected), expected in (Any, object)
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
    elif origin in (dict, Mapping) or (untyped and isinstance(value, Mapping)):
        _require(isinstance(value, Mapping), value, "an object", name)
        for key, each in value.items():
            check_type(key, str, f"a name in {name}")
            check_type(each, Any if untyped else arguments[1], f"{name}.{shown(key)}")
    elif not untyped:
        fits = isinstance(value, (int, float) if expected is float else expected)
        odd = isinstance(value, bool) and expected is not bool  # a bool is an int to Python
        _require(fits and not odd, value, expected.__name__, name)
    if isinstance(value, str):
        _require(value.isprintable(), value, "printable text", name)


def _require(fits: bool, value: object, expected: str, name: str) -> None:
    if not fits:
        raise TypeError(f"{name} is {shown(value)[:50]!r}, expected {expected}")
