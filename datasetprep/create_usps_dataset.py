"""USPS digits to HDF5.

``python datasetprep/create_usps_dataset.py --train --keep 0,1,2,3,4,5,6``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import gzip
import os
from collections.abc import Sequence
from functools import partial

import numpy as np

from datasetprep import command, raw_files
from utils.command_line import Parser, run_command
from utils.failures import RunError
from utils.files import ROOT, find_folder, sha256_of

#: The text files of The Elements of Statistical Learning, as they are distributed.
TEXT = {"train": "zip.train.gz", "test": "zip.test.gz"}
SHA256 = {
    "zip.train.gz": "66ebf231ab51f2cf6ac1a892d0f98ccffee1079d7a5db638c1f11f366046ca16",
    "zip.test.gz": "8dacc3c6e136af6c3488de9e5113a7daf140c8c2f1f0b61c54ee02f03f1a962f",
}
#: The files in LIBSVM's format, which torchvision downloads.
LIBSVM = {"train": "usps.bz2", "test": "usps.t.bz2"}
MD5 = {
    "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
    "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
}
RAW_FOLDER = ROOT / "data" / "raw" / "usps"


def create_usps_h5(
    output_path: str | Path = "data/processed/usps.h5",
    train: bool = True,
    download: bool = True,
    labels_to_keep: Sequence[int] | None = None,
    raw_dir: str | Path | None = None,
) -> Path:
    """Write one split of USPS, whole or the digits to keep, and return the file's absolute path.

    The raw files are taken from ``raw_dir``, else from the folder that ``DJSW_RAW_USPS`` names,
    else from ``data/raw/usps/``, where torchvision's are downloaded to. Either form of them will
    do: ``zip.train.gz`` and ``zip.test.gz``, or ``usps.bz2`` and ``usps.t.bz2``.

    :raises RunError: no right raw files, and none could be downloaded.
    """
    from datasetprep import h5_files  # imports torch: not for --help

    split = "train" if train else "test"

    def read_raw() -> h5_files.RawSplit:
        given = os.environ.get("DJSW_RAW_USPS") or None if raw_dir is None else raw_dir
        folder = RAW_FOLDER if given is None else find_folder(given, "--raw_dir or DJSW_RAW_USPS")
        text, libsvm = TEXT[split], LIBSVM[split]
        mirrors = {"torchvision": partial(_download, train)} if download and given is None else {}
        if (folder / text).is_file():
            wrong = raw_files.wrong_files(folder, {text: SHA256[text]})
            if not wrong:
                images, labels = _read_text(folder / text)
                source = "The Elements of Statistical Learning"
                return h5_files.RawSplit(images, labels, source, {text: SHA256[text]})
            if not mirrors:
                raise RunError(f"{folder}: {wrong[0]}; replace it by the published file")
            print(f"{folder}: {wrong[0]}", flush=True)
        raw_files.fetch(
            folder,
            {libsvm: MD5[libsvm]},
            mirrors,
            f"Put {text} (of The Elements of Statistical Learning) or {libsvm} (of LIBSVM's data "
            f"page) into {folder}, or name a folder that has it in the environment variable "
            "DJSW_RAW_USPS",
            algorithm="md5",
        )
        from torchvision.datasets import USPS

        data = USPS(folder, train=train)
        return h5_files.RawSplit(
            data.data, np.array(data.targets), "LIBSVM", {libsvm: sha256_of(folder / libsvm)}
        )

    return h5_files.create_h5(output_path, "usps", train, labels_to_keep, read_raw)


def _download(train: bool, folder: Path) -> None:
    from torchvision.datasets import USPS

    USPS(folder, train=train, download=True)


def _read_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 16, 16) and labels (N,) of lines "digit v1 … v256", each v in [-1, 1].

    Pixels become uint8 exactly as torchvision's USPS makes them: in float32, truncated. (In float64
    115 pixels of the test split differ.)
    """
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, dtype=np.float32)
    pixels = (table[:, 1:] + 1) / 2 * 255
    return pixels.astype(np.uint8).reshape(-1, 16, 16), table[:, 0].astype(np.uint8)


def parser() -> Parser:
    """The flags."""
    flags = command.parser("usps")
    flags.add_argument(
        "--raw_dir", metavar="FOLDER", help="folder of raw files (default: DJSW_RAW_USPS)"
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(partial(command.run, "usps", create_usps_h5), parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
