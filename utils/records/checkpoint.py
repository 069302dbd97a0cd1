"""Checkpoint files: tensors and plain values, loaded with ``weights_only=True``, always."""

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor, nn

from utils.errors import UsageError
from utils.records.evaluation import DatasetName, ModelRecord
from utils.records.files import FileRecord, atomic_write, relative_to_root, sha256_of
from utils.records.typed import check_type

FORMAT = "djsw-checkpoint-1"
#: Keys under which other programs keep a state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: What DataParallel and torch.compile put before a parameter's name.
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")


class CheckpointMetadata(TypedDict):
    """Metadata of a checkpoint; ``classes`` are the digits in the order of the logits.

    A run also writes the optional fields and those of its session, which nothing reads.
    """

    model: ModelRecord
    dataset: DatasetName
    classes: list[int]
    exp_name: NotRequired[str]
    username: NotRequired[str]
    settings: NotRequired[Mapping[str, object]]
    starting_weights: NotRequired[FileRecord | None]
    epoch: NotRequired[int]
    metrics: NotRequired[Mapping[str, object]]


class _Content(CheckpointMetadata):
    """The content of a file of :data:`FORMAT`."""

    weights: dict[Any, Any]
    weights_sha256: str


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
    write_plain(
        path,
        {
            **metadata,
            "format": FORMAT,
            "weights": dict(weights),
            "weights_sha256": weights_sha256(weights),
        },
    )


def write_plain(path: Path, content: Any, *, exclusive: bool = False) -> None:
    """Save tensors and plain values, whole or not at all.

    :raises FileExistsError: with ``exclusive``, where ``path`` exists.
    """
    # Through memory: on a full disk torch.save ends in an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path, exclusive=exclusive) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_plain(path: Path) -> Any:
    """Read tensors (to the CPU) and plain values, never code.

    :raises UsageError: the file is damaged, or holds anything else.
    """
    content = path.read_bytes()
    try:
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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or a bare state dict: wrapped, prefixed or from a GPU.

    :raises UsageError: the file is damaged, is neither, or has an odd field.
    """
    content, metadata, expected_hash = read_plain(path), {}, None
    if isinstance(content, dict) and "format" in content:
        try:
            if content["format"] != FORMAT:
                raise TypeError(f"format is {str(content['format'])[:50]!r}, expected {FORMAT!r}")
            check_type(content, _Content)
        except TypeError as error:
            raise UsageError(
                f"{path} is not a valid checkpoint: {error} (use the version that wrote it)"
            ) from None
        metadata = content
        content, expected_hash = (metadata.pop(name) for name in ("weights", "weights_sha256"))
        del metadata["format"]
    else:
        content = _unwrapped(content)
    if not _is_state_dict(content):
        raise UsageError(f"{path} holds no state dict (parameter names and finite tensors)")
    if expected_hash not in (None, weights_sha256(content)):
        raise UsageError(f"{path} is damaged: its weights are not those that were saved")
    weights = {PREFIXES.sub("", name): tensor for name, tensor in content.items()}
    return Checkpoint(path, weights, cast(CheckpointMetadata, metadata))


def _unwrapped(content: Any) -> Any:
    for _ in range(2):  # one may hold another
        for key in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
    return content


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and bool(tensor.isfinite().all())
            for name, tensor in content.items()
        )
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the checkpoint's weights into ``model``.

    :raises UsageError: names or shapes differ; the sentence shows the first difference.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UsageError(
                f"{checkpoint.path} does not fit {describe(model)}: it has "
                f"{_parameter(name, found)}, the model has {_parameter(name, wanted)}; "
                "give the --username and --dataset that the file was trained with"
            )
    model.load_state_dict(checkpoint.weights)


def _parameter(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{name} {shapes[name]}" if name in shapes else f"no {name}"


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
