"""Create HDF5 files of SVHN, house numbers in color (cropped digits).

``python datasetprep/create_svhn_dataset.py --train``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from functools import partial

from datasetprep import command, raw_files
from datasetprep.raw_files import Source
from utils.records.files import ROOT, sha256_of

#: MD5 of the files, from torchvision's source.
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
LIMIT = 2**28  # bytes of a raw file; train_32x32.mat has 182 million
RAW_FOLDER = ROOT / "data" / "raw" / "svhn"


def create_svhn_h5(
    output_path: str | Path = "data/processed/svhn.h5",
    train: bool = True,
    download: bool = True,
    labels_to_keep: Sequence[int] | None = None,
) -> Path:
    """Write one split of SVHN, all of it or the digits to keep, and return its absolute path.

    Images are uint8 (N, 32, 32, 3). The raw file, ``train_32x32.mat`` or ``test_32x32.mat``, is
    that in ``data/raw/svhn/``; if missing or altered, it is downloaded there as torchvision does.

    :raises RunError: the raw file is missing or altered and cannot be downloaded.
    """
    from datasetprep import h5_files  # imports torch, which --help does without

    split = "train" if train else "test"
    name = f"{split}_32x32.mat"

    def read_raw() -> h5_files.RawSplit:
        from torchvision.datasets import SVHN

        copy = partial(SVHN, split=split, download=True) if download else None
        source = Source("SVHN, by torchvision", {name: MD5[name]}, copy, "MD5", LIMIT)
        raw_files.fetch(RAW_FOLDER, [source], f"put {name} into {RAW_FOLDER}")
        data = SVHN(RAW_FOLDER, split)  # (N, 3, 32, 32), labels 0 to 9
        images, hashes = data.data.transpose(0, 2, 3, 1), {name: sha256_of(RAW_FOLDER / name)}
        return h5_files.RawSplit(images, data.labels, source.name, hashes)

    return h5_files.create_h5(output_path, "svhn", train, labels_to_keep, read_raw)


parser = partial(command.parser, "svhn")
main = partial(command.main, "svhn", create_svhn_h5)

if __name__ == "__main__":
    sys.exit(main())
