"""IDX files of a tiny synthetic MNIST."""

import struct
from pathlib import Path

import numpy as np

LABELS = np.resize(np.arange(10, dtype=np.uint8), 43)
IMAGES = np.random.default_rng(0).integers(0, 256, (43, 28, 28)).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """Return the IDX format: zeros, type (8: uint8), number of dimensions, sizes, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


RAW_MNIST = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[::-1]),
    "t10k-labels-idx1-ubyte": idx(LABELS[::-1]),
}


def copy_raw_mnist(folder: Path) -> None:
    """Write the four files into ``folder``."""
    for name, content in RAW_MNIST.items():
        (folder / name).write_bytes(content)
