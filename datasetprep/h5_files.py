"""HDF5 file of one split: written from raw images, verified against its own attributes.

A file holds ``images`` uint8 (N, H, W) or in color (N, H, W, 3), and ``labels`` uint8 (N,), the
original ones, in the order of the raw files, in the form of :mod:`utils.records.h5`; where it is
known, also who wrote each, ``writers`` uint16 (N,) and ``series`` uint8 (N,). The same images give
the same bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasetprep.raw_files import remove_old
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.files import ROOT, atomic_write, place_file
from utils.records.h5 import ATTRIBUTES, array_hashes, h5_bytes, read_h5


class RawSplit(NamedTuple):
    """All images of one split, uint8 (N, H, W) or (N, H, W, 3), labels (N,), and provenance.

    ``authors`` holds ``writers`` and ``series`` (N,), or nothing where they are unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str
    raw_sha256: dict[str, str]
    authors: Mapping[str, np.ndarray] = {}


def create_h5(
    output_path: str | Path,
    dataset: str,
    train: bool,
    labels_to_keep: Sequence[int] | None,
    read_raw: Callable[[], RawSplit],
) -> Path:
    """Write the kept images of one split, unless ``output_path`` already holds exactly these.

    :param labels_to_keep: all that there are, if ``None``.
    :param read_raw: returns the whole split; with labels called only if the file has to be written.
    :raises UsageError: a label to keep has no images, the folder of ``output_path`` does not exist,
        or it is no regular file.
    :raises RunError: the raw files are unavailable, or hold more than a file may.
    """
    raw = read_raw() if labels_to_keep is None else None
    keep = sorted({*(np.unique(raw.labels).tolist() if raw else labels_to_keep or ())})
    if not keep or not set(keep) <= set(range(256)):
        raise UsageError(f"labels to keep: {keep} (give one or more from 0 to 255)")
    if Path(output_path).parent == Path("data/processed"):  # missing from a fresh clone
        (ROOT / "data" / "processed").mkdir(parents=True, exist_ok=True)
    path = place_file(output_path, "--output")
    if path.exists() and not path.is_file():  # /dev/null is not to be replaced
        raise UsageError(f"--output {path} is not a regular file; give another name")
    remove_old(path.parent, f".{escape(path.name)}.*.tmp")
    split = "train" if train else "test"
    attributes: dict[str, Any] = {"schema_version": 2, "dataset": dataset}
    attributes |= {"split": split, "kept_labels": keep}
    if path.exists():
        try:
            _open_verified(path, **attributes)
            print(f"{path} already exists", flush=True)
            return path
        except RunError as error:
            print(f"replacing {error}", flush=True)
    raw = raw or read_raw()
    images, shape = raw.images, raw.images.shape
    fits = images.dtype == np.uint8 and (len(shape) == 3 or shape[3:] == (3,))
    if not fits or raw.labels.shape != shape[:1]:
        raise RunError(
            f"{raw.source}: images {images.dtype} {shape} and labels {raw.labels.shape}, expected "
            "uint8 (N, H, W) or in color (N, H, W, 3), and (N,)"
        )
    if labels_to_keep and (unknown := sorted({*keep} - {*np.unique(raw.labels).tolist()})):
        raise UsageError(f"labels to keep of {dataset}: {raw.source} has none of {unknown}")
    kept = np.isin(raw.labels, keep)
    arrays = {"images": raw.images, "labels": raw.labels.astype(np.uint8), **raw.authors}
    arrays = {name: array[kept] for name, array in arrays.items()}
    attributes |= {"source": raw.source, "raw_sha256": json.dumps(raw.raw_sha256)}
    attributes |= array_hashes(arrays)
    attributes |= {"tool": "DJSW datasetprep", "tool_version": "2"}
    try:
        content = h5_bytes(arrays, attributes)
    except ValueError as error:
        raise RunError(f"{raw.source}: {error}") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    by = f" by {len(np.unique(arrays['writers']))} writers" if raw.authors else ""
    print(f"wrote {path}: {kept.sum()} images{by}", flush=True)
    return path


def verify(path: Path) -> str:
    """Check a file against its own attributes and return a summary of its contents.

    :raises RunError: it is damaged or lacks an attribute, or its arrays are not those written.
    """
    data = _open_verified(path)
    try:
        attributes, arrays = read_h5(path, by_library=True)
    except ValueError as error:
        raise RunError(f"{path}: {error} (delete it to create it again)") from None
    hashes = array_hashes(arrays)
    stated = {name: data.attributes[name] for name in data.attributes if name in hashes}
    if (attributes, hashes) != (data.attributes, stated):
        raise RunError(f"{path}: HDF5 finds other images in it (delete it to create it again)")
    dataset, split, labels = (attributes[name] for name in ("dataset", "split", "kept_labels"))
    by = "" if data.writers is None else f" by {len(np.unique(data.writers))} writers"
    return (
        f"{path} is intact: {dataset} {split}, {len(data)} images of the labels {labels}{by}, "
        f"source {data.source}"
    )


def _open_verified(path: Path, **expected: object) -> MnistH5Dataset:
    data = MnistH5Dataset(path)
    missing = ", ".join(name for name in ATTRIBUTES if name not in data.attributes)
    if missing:
        raise RunError(f"{path}: missing attributes {missing} (delete it to create it again)")
    data.check_attributes(**expected)
    return data
