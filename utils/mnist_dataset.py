"""PyTorch dataset of images in an HDF5 file."""

import errno
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.errors import RunError
from utils.records.files import candidate_paths
from utils.records.h5 import ATTRIBUTES, array_hashes, read_h5


class DigitClasses:
    """Target transform from the digit ``digits[k]`` to class ``k``, and from other digits to -1.

    >>> DigitClasses([4, 5, 6])(np.array([6, 4, 9]))
    array([ 2,  0, -1])
    """

    #: Tells :class:`MnistH5Dataset` to pass whole arrays of labels.
    takes_arrays = True

    def __init__(self, digits: Sequence[int]) -> None:
        self.table = np.full(256, -1, dtype=np.int64)
        self.table[list(digits)] = np.arange(len(digits))

    def __call__(self, labels: np.ndarray | int) -> np.ndarray | int:
        """Return the classes of an array of digits (int64), or the class of one digit."""
        classes = self.table[labels]
        return int(classes) if np.ndim(labels) == 0 else classes


class MnistH5Dataset(Dataset[tuple[Any, Any]]):
    """Images and labels of one HDF5 file: ``images`` uint8 (N, H, W), ``labels`` integers (N,).

    ``dataset[int]`` is a float32 tensor (1, H, W) in [0, 1] and an int label. With a list, slice or
    array as index it is a batch (B, 1, H, W) and an int64 tensor (B,). Images in color, uint8
    (N, H, W, 3), are tensors (3, H, W) and (B, 3, H, W). A ``DataLoader`` reads whole
    batches, with index batches as sampler and ``batch_size=None`` or the usual ``batch_size=B``.

    The file does not stay open. Images of the files that ``datasetprep`` writes are memory-mapped:
    forked workers share them, and random access costs no more than indexing an array. Others are
    read into memory once.

    :param h5_path: taken from the working directory, else from the repository root.
    :param transform: called with each image, a float32 tensor (1, H, W).
    :param target_transform: called with each label, an int, or with whole label arrays if it has
        ``takes_arrays = True``.
    :ivar attributes: the root attributes that ``datasetprep`` writes; other files have none.
    :ivar writers: who wrote each digit, integers (N,); None if the file does not say.
    :ivar series: the series of NIST's forms that it is from, (N,); None likewise.
    :raises FileNotFoundError: the file does not exist.
    :raises RunError: the file is damaged, empty, not stored in itself or not of the form above.
    """

    def __init__(
        self,
        h5_path: str | Path,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        paths = candidate_paths(h5_path)
        found = next(filter(Path.exists, paths), None)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", " and ".join(map(str, paths)))
        self.h5_path = found.resolve()
        if not found.is_file():  # a pipe would never end
            raise self._invalid("not a regular file")
        self.transform = transform
        self.target_transform = target_transform
        try:
            self.attributes, self._arrays = read_h5(self.h5_path)
        except ValueError as error:
            raise self._invalid(str(error)) from None
        self.images, self.labels = self._arrays["images"], self._arrays["labels"]
        self.writers, self.series = self._arrays.get("writers"), self._arrays.get("series")

    def _invalid(self, detail: str) -> RunError:
        return RunError(f"{self.h5_path}: {detail} (delete it to create it again)")

    @property
    def source(self) -> str | None:
        """Source of the images; None if the file lacks one of the attributes that we write."""
        return self.attributes["source"] if self.attributes.keys() >= ATTRIBUTES.keys() else None

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map would contain every image.
        return type(self), (self.h5_path, self.transform, self.target_transform)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.intp)  # [] has the type float64
        images, labels = self._scaled(self.images[index]), self.labels[index].astype(np.int64)
        if labels.ndim == 0:
            return self._sample(images, int(labels))
        if self.transform and len(labels):
            images = default_collate([*map(self.transform, images)])
        if self.target_transform is None or len(labels) == 0:
            return images, torch.from_numpy(labels)
        if getattr(self.target_transform, "takes_arrays", False):
            return images, torch.from_numpy(self.target_transform(labels))
        return images, default_collate([*map(self.target_transform, labels.tolist())])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Return the samples of one batch, for a ``DataLoader`` to collate."""
        rows = np.asarray(indices, dtype=np.intp)
        return [*map(self._sample, self._scaled(self.images[rows]), self.labels[rows].tolist())]

    def _scaled(self, images: np.ndarray) -> Tensor:
        color = self.images.ndim == 4
        # NumPy rounds float32 division correctly on every machine. The memory is torch's because
        # that is aligned to 64 bytes, and the rounding of matrix products can depend on alignment.
        scaled = torch.empty(images.shape)
        np.divide(images, np.float32(255), out=scaled.numpy(), dtype=np.float32)
        return scaled.movedim(-1, -3).contiguous() if color else scaled.unsqueeze(-3)

    def _sample(self, image: Tensor, label: int) -> tuple[Any, Any]:
        return (
            self.transform(image) if self.transform else image,
            self.target_transform(label) if self.target_transform else label,
        )

    def check_attributes(self, **expected: object) -> None:
        """Check the attributes that the file has against its arrays and the ``expected`` values.

        :raises RunError: an array is not the one that was written, or an attribute differs.
        """
        hashes = self.sha256 | self.authors_sha256
        for name, value in (hashes | expected).items():
            stated = np.asarray(self.attributes.get(name, value)).tolist()
            if stated != value and name in hashes:
                raise self._invalid(f"altered, {name} is {value}, expected {stated}")
            if stated != value:
                raise self._invalid(f"{name} is {stated}, expected {value}")

    @property
    def classes(self) -> np.ndarray:
        """All labels, int64 (N,), by ``target_transform`` if that takes arrays."""
        labels = self.labels.astype(np.int64)
        if self.target_transform and getattr(self.target_transform, "takes_arrays", False):
            labels = self.target_transform(labels)
        return labels

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of images and labels, named like the file's attributes."""
        return array_hashes({"images": self.images, "labels": self.labels})

    @cached_property
    def authors_sha256(self) -> dict[str, str]:
        """SHA-256 of writers and series, where the file has them."""
        return array_hashes({name: self._arrays[name] for name in [*self._arrays][2:]})
