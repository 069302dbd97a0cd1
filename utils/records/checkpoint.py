"""Checkpoint files: tensors and plain values, loaded with ``weights_only=True``, always."""

import hashlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor, nn

from utils.errors import RunError, UsageError
from utils.records.evaluation import DatasetName, ModelRecord, SettingsRecord, StartRecord
from utils.records.files import FileRecord, atomic_write, relative_to_root, sha256_of
from utils.records.typed import (
    COUNT_LIMIT,
    LIMIT,
    TEXT_LIMIT,
    content_sha256,
    read_bytes,
    require_plain,
    require_record,
    shown,
)

FORMAT = "djsw-checkpoint-2"
#: What ``weights_only=True`` would call and makes much of little: ``bytearray(10**10)``.
AMPLIFIERS = ("_codecs encode", "builtins bytearray", "__builtin__ bytearray")
#: Keys under which other programs keep a state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: What DataParallel and torch.compile put before a parameter's name.
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")


class CheckpointMetadata(TypedDict):
    """Metadata of a checkpoint; ``classes`` are the labels in the order of the logits.

    A run also writes the optional fields and those of its session, which nothing reads.
    """

    model: ModelRecord
    dataset: DatasetName
    classes: list[int]
    class_names: NotRequired[list[str]]
    exp_name: NotRequired[str]
    username: NotRequired[str]
    settings: NotRequired[SettingsRecord]
    starting_weights: NotRequired[StartRecord | None]
    teachers: NotRequired[list[FileRecord]]
    epoch: NotRequired[int]
    metrics: NotRequired[Mapping[str, object]]


class _Content(CheckpointMetadata):
    """The content of a file, with its digest."""

    weights: dict[Any, Any]
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: ``metadata`` is empty for a bare state dict."""

    path: Path
    weights: dict[str, Tensor]
    metadata: CheckpointMetadata

    def source(self) -> FileRecord:
        """Return the file and its hash, for a record."""
        return {"file": relative_to_root(self.path), "sha256": sha256_of(self.path)}


def cpu_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the model's weights to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def write_checkpoint(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write CPU ``weights`` and :class:`CheckpointMetadata`, whole or not at all."""
    write_plain(path, {**metadata, "format": FORMAT, "weights": dict(weights)})


def write_plain(path: Path, content: Mapping[str, Any], *, exclusive: bool = False) -> None:
    """Save tensors and plain values with their digest, whole or not at all.

    :raises FileExistsError: with ``exclusive``, where ``path`` exists.
    :raises RunError: it is too large to be read again.
    """
    # Through memory: on a full disk torch.save ends in an error of its own.
    buffer = io.BytesIO()
    torch.save({**content, "sha256": content_sha256(content)}, buffer)
    if buffer.tell() > LIMIT:
        raise RunError(f"{path} would have more than {LIMIT:,} bytes; give a smaller network")
    with atomic_write(path, exclusive=exclusive) as temporary, buffer.getbuffer() as whole:
        temporary.write_bytes(whole)


def read_plain(path: Path) -> Any:
    """Read tensors (to the CPU) and plain values, never code.

    :raises UsageError: the file is damaged, or holds anything else.
    """
    try:
        content = read_bytes(path, LIMIT)
    except ValueError as error:
        raise UsageError(f"{path} is no checkpoint: {error}; give another file") from None
    if content[:1] in (b"{", b"[") and content.isascii():
        raise UsageError(f"{path} is JSON, no checkpoint; give a …_checkpoint_….pt")
    try:
        _require_harmless(content)
        with warnings.catch_warnings():  # torch warns of old pickle protocols before it decides
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} was not loaded: it is damaged, or holds Python objects, which can run code "
            "(save only tensors and plain values: torch.save(model.state_dict(), FILE))"
        ) from None
    except Exception:  # torch.load raises anything on other bytes
        reason = "cut off, damaged or no PyTorch file" if content else "empty"
        raise UsageError(f"{path} is {reason}; give a whole one") from None


def _require_harmless(content: bytes) -> None:
    """Check that reading a file makes no more of it than its bytes, and that these are whole.

    :raises pickle.UnpicklingError, Exception: it makes more, or is damaged.
    """
    pickles, count = io.BytesIO(content), 5  # of the form before PyTorch 1.6
    if content.startswith(b"PK"):
        with zipfile.ZipFile(pickles) as archive:
            entries = archive.infolist()
            stored = all(each.compress_type == zipfile.ZIP_STORED for each in entries)
            if not stored or sum(each.file_size for each in entries) > len(content):
                raise pickle.UnpicklingError("it unpacks to more")
            if archive.testzip():
                raise ValueError("a checksum is wrong")
            (name,) = (each for each in archive.namelist() if each.endswith("data.pkl"))
            pickles, count = io.BytesIO(archive.read(name)[:TEXT_LIMIT]), 1
    operations = 0
    while count and pickles.tell() < len(content):
        for _, argument, _ in pickletools.genops(pickles):
            operations += 1
            if argument in AMPLIFIERS or operations > COUNT_LIMIT:
                raise pickle.UnpicklingError("it makes more")
        count -= 1


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or a bare state dict: wrapped, prefixed or from a GPU.

    :raises UsageError: the file is damaged, is neither, or has an odd field.
    """
    content: Any = read_plain(path)
    metadata: dict[str, Any] = {}
    if isinstance(content, dict) and "format" in content:
        metadata = content
        if str(metadata["format"]).startswith("djsw-state-"):
            raise UsageError(
                f"{path} is the state of a run, which --resume reads; give a …_checkpoint_….pt"
            )
        try:
            if metadata["format"] != FORMAT:
                raise TypeError(
                    f"format is {shown(metadata['format'])[:50]!r}, expected {FORMAT!r}"
                )
            require_record(metadata, _Content, Tensor)
            content = metadata.pop("weights")
            require_plain(metadata)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{path} is not a valid checkpoint: {shown(error)} (use the version that wrote it)"
            ) from None
    else:
        content = _unwrapped(content)
    if not _is_state_dict(content):
        raise UsageError(f"{path} holds no state dict (parameter names and finite tensors)")
    weights = {PREFIXES.sub("", name): tensor for name, tensor in content.items()}
    if len(weights) < len(content):
        raise UsageError(f"{path} holds a parameter twice, with and without a prefix; give one")
    for name in ("format", "sha256"):
        metadata.pop(name, None)
    return Checkpoint(path, weights, cast(CheckpointMetadata, metadata))


def _unwrapped(content: Any) -> Any:
    for _ in range(2):  # one may hold another
        for key in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
    return content


def _is_state_dict(content: Any) -> bool:
    try:
        require_plain(content, Tensor)
    except (TypeError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and 0 < len(content) <= 10_000  # comparing more takes seconds
        and all(
            isinstance(tensor, Tensor)
            and tensor.device.type == "cpu"
            and not tensor.is_complex()
            and bool(tensor.isfinite().all())
            for tensor in content.values()
        )
    )


def require_fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's weights are those of ``model``, which may be on the meta device.

    :raises UsageError: names, shapes or kinds of numbers differ; the sentence shows the first
        difference.
    """
    wanted, found = _parameters(model.state_dict()), _parameters(checkpoint.weights)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UsageError(
                f"{checkpoint.path} does not fit {describe(model)}: it has "
                f"{found.get(name, f'no {shown(name)}')}, the model has "
                f"{wanted.get(name, f'no {shown(name)}')}; "
                "give the --username and --dataset that the file was trained with"
            )


def _parameters(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name and shape of each tensor, and whether it holds integers, by its name."""
    kinds = {True: "", False: "integer "}
    return {
        name: f"{shown(name)} {kinds[each.is_floating_point()]}{tuple(each.shape)}"
        for name, each in weights.items()
    }


def describe(model: nn.Module) -> str:
    """Return name and layer sizes, such as ``SMLP 784-77-77-77-77-6``; else the name alone."""
    layers = [
        module for module in model.modules() if next(module.parameters(False), None) is not None
    ]
    name = type(model).__name__
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
        return name
    return "-".join(
        [f"{name} {layers[0].in_features}", *(f"{each.out_features}" for each in layers)]
    )


def describe_all(models: Sequence[nn.Module]) -> str:
    """Return what :func:`describe` does, for an ensemble such as ``5 x SMLP 784-77-77-77-77-6``."""
    counts = Counter(map(describe, models))
    if len(models) == 1:
        return next(iter(counts))
    return " + ".join(f"{count} x {text}" for text, count in counts.items())


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the sorted (name, dtype, shape, bytes) of the tensors.

    Files with equal weights differ, since ``torch.save`` stores the name of the file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
