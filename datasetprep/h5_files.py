"""The HDF5 file of one split: how it is written, and its check against itself.

A file holds ``images`` uint8 (N, H, W) and ``labels`` uint8 (N,), the digits themselves, in the
order of the raw files; both contiguous and uncompressed, so that a reader can memory-map the bytes
in place. The root attributes are :data:`ATTRIBUTES`; ``raw_sha256`` is JSON, raw file -> hash.
The same digits give the same bytes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.failures import RunError, UsageError
from utils.files import ROOT, place_file, writing
from utils.mnist_dataset import MnistH5Dataset, array_hashes

SCHEMA_VERSION = 1
ATTRIBUTES = (
    "schema_version",
    "dataset",
    "split",
    "kept_labels",
    "source",
    "raw_sha256",
    "images_sha256",
    "labels_sha256",
    "tool",
    "tool_version",
)
ALL_DIGITS = tuple(range(10))


@dataclass(frozen=True)
class RawSplit:
    """All digits of one split: images uint8 (N, H, W), labels (N,), and where they are from."""

    images: np.ndarray
    labels: np.ndarray
    source: str
    raw_sha256: dict[str, str]


def create_h5(
    output_path: str | Path,
    dataset: str,
    train: bool,
    labels_to_keep: Sequence[int] | None,
    read_raw: Callable[[], RawSplit],
) -> Path:
    """Write the kept digits of one split, unless ``output_path`` holds just these already.

    :param read_raw: gives all images of the split, uint8 (N, H, W), with their labels (N,).
    :raises UsageError: no digits are kept, or the folder of ``output_path`` does not exist.
    :raises RunError: the raw files are not to be had.
    """
    keep = sorted(set(ALL_DIGITS if labels_to_keep is None else labels_to_keep))
    if not keep or not set(keep) <= set(ALL_DIGITS):
        raise UsageError(f"labels to keep {keep} are no digits; give some of {list(ALL_DIGITS)}")
    if Path(output_path).parent == Path("data/processed"):  # a fresh clone lacks it
        (ROOT / "data" / "processed").mkdir(parents=True, exist_ok=True)
    path = place_file(output_path, "--output")
    wanted = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "split": "train" if train else "test",
        "kept_labels": keep,
    }
    if path.exists() and _holds(path, wanted):
        print(f"{path} is there already", flush=True)
        return path
    raw = read_raw()
    kept = np.isin(raw.labels, keep)
    images = np.ascontiguousarray(raw.images[kept], dtype=np.uint8)
    labels = raw.labels[kept].astype(np.uint8)
    with writing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("images", data=images)
        file.create_dataset("labels", data=labels)
        file.attrs.update(
            wanted,
            source=raw.source,
            raw_sha256=json.dumps(raw.raw_sha256),
            **array_hashes(images, labels),
            tool="DJSW datasetprep",
            tool_version="1",
        )
    print(f"wrote {path}: {len(labels)} images", flush=True)
    return path


def verify(path: Path) -> str:
    """Check a file against its own attributes; returns the sentence that says what it holds.

    :raises RunError: an array is not the one that was written, or an attribute is missing.
    """
    data = MnistH5Dataset(path)
    stated = _stated(data)
    for name, found in data.sha256.items():
        if stated[name] != found:
            raise RunError(
                f"{path} is altered: its {name} is {found}, it was written with {stated[name]}; "
                "delete it and make it anew"
            )
    return (
        f"{path} is as written: {stated['dataset']} {stated['split']}, {len(data)} images of the "
        f"digits {stated['kept_labels']}, from {stated['source']}"
    )


def _stated(data: MnistH5Dataset) -> dict[str, Any]:
    """The file's attributes as plain values."""
    missing = [name for name in ATTRIBUTES if name not in data.attributes]
    if missing:
        raise RunError(f"{data.h5_path} lacks the attributes {', '.join(missing)}; make it anew")
    return {name: np.asarray(value).tolist() for name, value in data.attributes.items()}


def _holds(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the file is whole and is what is wanted; if not, says that it is replaced."""
    try:
        verify(path)
        stated = _stated(MnistH5Dataset(path))
    except RunError as error:
        print(f"replaced: {error}", flush=True)
        return False
    for name, value in wanted.items():
        if stated[name] != value:
            print(f"replaced: {path} has the {name} {stated[name]}, not {value}", flush=True)
            return False
    return True
