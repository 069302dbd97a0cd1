"""Create HDF5 files of Fashion-MNIST, clothes in the form of MNIST.

``python datasetprep/create_fashion_dataset.py --train``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil
import subprocess
from collections.abc import Sequence
from functools import partial

from datasetprep import command, raw_files
from datasetprep.create_mnist_dataset import read_idx
from datasetprep.raw_files import Source
from utils.records.files import ROOT

#: SHA-256 of the four IDX files, uncompressed.
RAW_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
RAW_FOLDER = ROOT / "data" / "raw" / "fashion"
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def create_fashion_h5(
    output_path: str | Path = "data/processed/fashion.h5",
    train: bool = True,
    download: bool = True,
    labels_to_keep: Sequence[int] | None = None,
) -> Path:
    """Write one split of Fashion-MNIST, or the classes to keep, and return its absolute path.

    The raw IDX files are those in ``data/raw/fashion/`` (unpacked or gzipped). If one is missing
    or altered, they are downloaded there, from torchvision's mirror or else from Debian.

    :raises RunError: the raw files are missing or altered and cannot be downloaded.
    """
    from datasetprep import h5_files  # imports torch, which --help does without

    def read_raw() -> h5_files.RawSplit:
        from torchvision.datasets import FashionMNIST

        mirror = Source(f"Debian ({DEBIAN_PACKAGE}, 31 MB)", RAW_SHA256, _download_from_debian)
        return read_idx(FashionMNIST, RAW_FOLDER, train, mirror, download)

    return h5_files.create_h5(output_path, "fashion", train, labels_to_keep, read_raw)


def _download_from_debian(folder: Path) -> None:
    """Download and unpack the package; installing it would need root."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise FileNotFoundError("apt-get or dpkg-deb is not installed")
    run = partial(subprocess.run, cwd=folder, stdout=subprocess.DEVNULL, timeout=600, check=True)
    run([apt, "download", DEBIAN_PACKAGE])
    run([dpkg, "-x", next(folder.glob("*.deb")), "package"])
    unpacked = folder / "package" / "usr" / "share" / "datasets" / "fashion-mnist"
    raw_files.copy_given(unpacked, RAW_SHA256, folder)


parser = partial(command.parser, "fashion")
main = partial(command.main, "fashion", create_fashion_h5)

if __name__ == "__main__":
    sys.exit(main())
