"""HDF5 file of one split: written from raw digits, verified against its own attributes.

A file holds ``images`` uint8 (N, H, W) and ``labels`` uint8 (N,), the original digits, in the order
of the raw files. Both are contiguous and uncompressed, so that a reader can memory-map them. The
same digits give the same bytes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset, array_hashes
from utils.records.files import ROOT, atomic_write, place_file

SCHEMA_VERSION = 1
ALL_DIGITS = tuple(range(10))


@dataclass(frozen=True)
class RawSplit:
    """All digits of one split: images uint8 (N, H, W), labels (N,), and their provenance."""

    images: np.ndarray
    labels: np.ndarray
    source: str
    raw_sha256: dict[str, str]


@dataclass(frozen=True)
class Attributes:
    """Root attributes of a file, in the order in which they are written.

    :ivar raw_sha256: JSON, raw file name -> SHA-256.
    :ivar images_sha256: of the bytes of ``images``; ``labels_sha256`` likewise.
    """

    schema_version: int
    dataset: str
    split: str
    kept_labels: list[int]
    source: str
    raw_sha256: str
    images_sha256: str
    labels_sha256: str
    tool: str = "DJSW datasetprep"
    tool_version: str = "1"


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
    keep = sorted(set(ALL_DIGITS if labels_to_keep is None else labels_to_keep))
    if not keep or not set(keep) <= set(ALL_DIGITS):
        raise UsageError(f"labels to keep: {keep} (give one or more digits from 0 to 9)")
    if Path(output_path).parent == Path("data/processed"):  # missing from a fresh clone
        (ROOT / "data" / "processed").mkdir(parents=True, exist_ok=True)
    path = place_file(output_path, "--output")
    wanted: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "split": "train" if train else "test",
        "kept_labels": keep,
    }
    if path.exists():
        try:
            _read_verified(path, **wanted)
        except RunError as error:
            print(f"replacing {error}", flush=True)
        else:
            print(f"{path} already exists", flush=True)
            return path
    raw = read_raw()
    kept = np.isin(raw.labels, keep)
    images = np.ascontiguousarray(raw.images[kept], dtype=np.uint8)
    labels = raw.labels[kept].astype(np.uint8)
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("images", data=images)
        file.create_dataset("labels", data=labels)
        attributes = Attributes(
            source=raw.source,
            raw_sha256=json.dumps(raw.raw_sha256),
            **(wanted | array_hashes(images, labels)),
        )
        file.attrs.update(asdict(attributes))
    print(f"wrote {path}: {len(labels)} images", flush=True)
    return path


def verify(path: Path) -> str:
    """Check a file against its own attributes and return a summary of its contents.

    :raises RunError: the file is damaged, its arrays are not those that were written, or an
        attribute is missing.
    """
    data, attributes = _read_verified(path)
    return (
        f"{path} is intact: {attributes.dataset} {attributes.split}, {len(data)} images of the "
        f"digits {attributes.kept_labels}, source {attributes.source}"
    )


def _read_verified(path: Path, **expected: object) -> tuple[MnistH5Dataset, Attributes]:
    data = MnistH5Dataset(path)
    names = [field.name for field in fields(Attributes)]
    missing = [name for name in names if name not in data.attributes]
    if missing:
        raise RunError(
            f"{path}: missing attributes {', '.join(missing)} (delete it to create it again)"
        )
    data.check_attributes(**expected)
    return data, Attributes(**{n: np.asarray(data.attributes[n]).tolist() for n in names})
