"""Digits in HDF5 files, as a PyTorch dataset."""

import hashlib
import operator
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.failures import RunError
from utils.files import places


class DigitClasses:
    """Target transform: the digit ``digits[k]`` becomes class ``k``, any other digit -1.

    >>> DigitClasses([4, 5, 6])(np.array([6, 4, 9]))
    array([ 2,  0, -1])
    """

    #: Tells :class:`MnistH5Dataset` to hand over whole arrays of labels.
    takes_arrays = True

    def __init__(self, digits: Sequence[int]) -> None:
        self.table = np.full(256, -1, dtype=np.int64)
        self.table[list(digits)] = np.arange(len(digits))

    def __call__(self, labels: Any) -> Any:
        """Classes of an array of digits, or of one digit."""
        classes = self.table[labels]
        return int(classes) if np.ndim(labels) == 0 else classes


class MnistH5Dataset(Dataset[tuple[Any, Any]]):
    """The images and labels of one HDF5 file (``images`` uint8 (N, H, W), ``labels`` (N,)).

    ``dataset[int]`` is a float32 tensor (1, H, W) in [0, 1] and an int label; ``dataset[list, slice
    or array]`` is (B, 1, H, W) and an int64 tensor (B,). In a ``DataLoader``, a sampler of index
    batches with ``batch_size=None`` and the usual ``batch_size=B`` both read whole batches.

    The file is closed again before the constructor returns. Contiguous images are memory-mapped, so
    that forked workers share them and random access costs what an array costs; images that are
    compressed or chunked are read into memory, once. A worker that is spawned opens the file anew.

    :param h5_path: the file; a relative path is taken from the working directory, else from the
        repository root.
    :param transform: called with each image, a float32 tensor (1, H, W).
    :param target_transform: called with each label, an int; with whole label arrays where it has
        ``takes_arrays = True``.
    :raises FileNotFoundError: there is no such file.
    :raises RunError: the file is not of the form above, or is empty.
    """

    def __init__(
        self,
        h5_path: str | Path,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        found = [place for place in places(h5_path) if place.is_file()]
        if not found:
            looked = " and ".join(map(str, places(h5_path)))
            raise FileNotFoundError(2, "no such file", looked)
        self.h5_path = found[0].resolve()
        self.transform = transform
        self.target_transform = target_transform
        try:
            # Read-only input needs no lock, and some network file systems offer none.
            with h5py.File(self.h5_path, "r", locking=False) as file:
                self._read(file)
        except OSError as error:
            raise RunError(
                f"{self.h5_path} is damaged or no HDF5 file ({error}); delete it and make it anew"
            ) from None

    def _read(self, file: h5py.File) -> None:
        images, labels = self._checked(file)
        #: The root attributes: where the digits come from (``datasetprep`` writes them).
        self.attributes: dict[str, Any] = dict(file.attrs)
        self.labels: np.ndarray = labels[()]
        offset = None if images.chunks else images.id.get_offset()
        if offset is None:
            self.images: np.ndarray = images[()]
        else:
            mapped = np.memmap(self.h5_path, np.uint8, "r", offset, images.shape)
            self.images = mapped.view(np.ndarray)  # plain arrays are indexed twice as fast

    def _checked(self, file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset]:
        def check(passed: bool, message: str) -> None:
            if not passed:
                raise RunError(f"{self.h5_path} {message}; delete it and make it anew")

        images, labels = file.get("images"), file.get("labels")
        for name, found in (("images", images), ("labels", labels)):
            check(isinstance(found, h5py.Dataset), f"holds no dataset '{name}'")
        check(
            images.dtype == np.uint8 and images.ndim == 3,
            f"holds images {images.dtype} {images.shape} instead of uint8 (N, H, W)",
        )
        check(
            labels.dtype.kind in "iu" and labels.ndim == 1,
            f"holds labels {labels.dtype} {labels.shape} instead of integers (N,)",
        )
        check(len(images) == len(labels), f"holds {len(images)} images but {len(labels)} labels")
        check(images.size > 0, "holds no images")
        return images, labels

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling the mapped array would copy every image.
        return type(self), (self.h5_path, self.transform, self.target_transform)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.ndim == 0:
                index = operator.index(index.item())
            elif index.size == 0:
                index = index.astype(np.intp)
        images, labels = self._scaled(self.images[index]), self.labels[index]
        if isinstance(index, int):
            return self._sample(images, int(labels))
        return self._transformed(images), self._target_transformed(labels)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """The samples of one batch, read at once; ``DataLoader`` calls this and collates."""
        rows = np.asarray(indices, dtype=np.intp)
        images, labels = self._scaled(self.images[rows]), self.labels[rows].tolist()
        return [self._sample(image, label) for image, label in zip(images, labels, strict=True)]

    @staticmethod
    def _scaled(images: np.ndarray) -> Tensor:
        # NumPy's float32 division is correctly rounded on every machine; torch's memory begins at a
        # multiple of 64 bytes, on which the rounding of matrix products may depend.
        scaled = torch.empty(images.shape)
        np.divide(images, np.float32(255), out=scaled.numpy(), dtype=np.float32)
        return scaled.unsqueeze(-3)

    def _sample(self, image: Tensor, label: int) -> tuple[Any, Any]:
        return (
            self.transform(image) if self.transform else image,
            self.target_transform(label) if self.target_transform else label,
        )

    def _transformed(self, images: Tensor) -> Any:
        if self.transform is None or len(images) == 0:
            return images
        return default_collate([self.transform(image) for image in images])

    def _target_transformed(self, labels: np.ndarray) -> Any:
        if self.target_transform is None or len(labels) == 0:
            return torch.from_numpy(labels.astype(np.int64))
        if getattr(self.target_transform, "takes_arrays", False):
            return torch.from_numpy(self.target_transform(labels))
        return default_collate([self.target_transform(label) for label in labels.tolist()])

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the bytes of each array, as the file's own attributes state them."""
        return array_hashes(self.images, self.labels)


def array_hashes(images: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """``{"images_sha256": …, "labels_sha256": …}`` of the arrays' bytes, row by row."""
    return {
        f"{name}_sha256": hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        for name, array in (("images", images), ("labels", labels))
    }
