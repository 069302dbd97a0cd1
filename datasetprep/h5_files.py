"""HDF5 file of one split: written from raw digits, verified against its own attributes.

A file holds ``images`` uint8 (N, H, W) and ``labels`` uint8 (N,), the original digits, in the order
of the raw files. Both are contiguous and uncompressed, so that a reader can memory-map them. The
same digits give the same bytes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset, array_hashes
from utils.records.files import ROOT, atomic_write, place_file

#: Root attributes: the content asked for, and its provenance (``raw_sha256``: JSON, file -> hash).
CONTENT = ("schema_version", "dataset", "split", "kept_labels")
PROVENANCE = ("source", "raw_sha256", "images_sha256", "labels_sha256", "tool", "tool_version")


class RawSplit(NamedTuple):
    """All digits of one split: images uint8 (N, H, W), labels (N,), and their provenance."""

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
    """Write the kept digits of one split, unless ``output_path`` already holds exactly these.

    :param read_raw: returns the whole split; called only if the file has to be written.
    :raises UsageError: no digits are kept, or the folder of ``output_path`` does not exist.
    :raises RunError: the raw files are unavailable.
    """
    keep = sorted(set(range(10) if labels_to_keep is None else labels_to_keep))
    if not keep or not set(keep) <= set(range(10)):
        raise UsageError(f"labels to keep: {keep} (give one or more digits from 0 to 9)")
    if Path(output_path).parent == Path("data/processed"):  # missing from a fresh clone
        (ROOT / "data" / "processed").mkdir(parents=True, exist_ok=True)
    path = place_file(output_path, "--output")
    split = "train" if train else "test"
    attributes = {"schema_version": 1, "dataset": dataset, "split": split, "kept_labels": keep}
    if path.exists():
        try:
            _open_verified(path, **attributes)
            print(f"{path} already exists", flush=True)
            return path
        except RunError as error:
            print(f"replacing {error}", flush=True)
    raw = read_raw()
    if raw.images.ndim != 3:
        raise RunError(f"{raw.source}: images {raw.images.shape}, expected gray ones (N, H, W)")
    kept = np.isin(raw.labels, keep)
    images, labels = raw.images[kept], raw.labels[kept].astype(np.uint8)
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("images", data=images)
        file.create_dataset("labels", data=labels)
        attributes |= {"source": raw.source, "raw_sha256": json.dumps(raw.raw_sha256)}
        attributes |= array_hashes(images, labels)
        file.attrs.update(attributes | {"tool": "DJSW datasetprep", "tool_version": "1"})
    print(f"wrote {path}: {len(labels)} images", flush=True)
    return path


def verify(path: Path) -> str:
    """Check a file against its own attributes and return a summary of its contents.

    :raises RunError: it is damaged or lacks an attribute, or its arrays are not those written.
    """
    data = _open_verified(path)
    dataset, split, digits = (data.attributes[name] for name in CONTENT[1:])
    return (
        f"{path} is intact: {dataset} {split}, {len(data)} images of the digits "
        f"{np.asarray(digits).tolist()}, source {data.attributes['source']}"
    )


def _open_verified(path: Path, **expected: object) -> MnistH5Dataset:
    data = MnistH5Dataset(path)
    missing = ", ".join(name for name in (*CONTENT, *PROVENANCE) if name not in data.attributes)
    if missing:
        raise RunError(f"{path}: missing attributes {missing} (delete it to create it again)")
    data.check_attributes(**expected)
    return data
