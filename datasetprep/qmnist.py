"""Who wrote each digit of MNIST, by the labels of QMNIST (Yadav and Bottou, 2019)."""

import gzip
import os
from functools import partial
from pathlib import Path

import numpy as np

from datasetprep import raw_files
from datasetprep.raw_files import Source
from utils.errors import MissingData, RunError
from utils.records.files import ROOT, find_folder

#: MD5 of the files, from torchvision's source.
MD5 = {
    "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
    "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
}
RAW_FOLDER = ROOT / "data" / "raw" / "qmnist"


def read_authors(train: bool, digits: np.ndarray, download: bool) -> dict[str, np.ndarray]:
    """Return ``writers`` uint16 (N,) and ``series`` uint8 (N,) of one split of MNIST.

    The files are those in ``data/raw/qmnist/``. If missing there, they are copied from the folder
    that the environment variable ``DJSW_RAW_QMNIST`` names; without one they are downloaded, as
    torchvision does. Where they cannot be had, the result is empty, and a line says so.

    The first rows are MNIST's digits in its order, eight integers each: digit, series, writer, …

    :param digits: the labels (N,), which QMNIST has to agree with.
    :raises UsageError: the folder of ``DJSW_RAW_QMNIST`` does not exist.
    :raises RunError: the labels differ.
    """
    folder = os.environ.get("DJSW_RAW_QMNIST")
    if folder:
        given = find_folder(folder, "DJSW_RAW_QMNIST")
        source = Source(folder, MD5, partial(raw_files.copy_given, given, MD5), "MD5")
    else:
        source = Source("QMNIST, by torchvision", MD5, _download if download else None, "MD5")
    try:
        raw_files.fetch(RAW_FOLDER, [source], "docs/data.md says where they can be had")
    except MissingData as error:
        print(f"note        writers unknown, intervals over blocks of images: {error}", flush=True)
        return {}
    name = next(name for name in MD5 if ("train" in name) == train)
    content = raw_files.read(RAW_FOLDER / name, gzip.open)
    rows = np.frombuffer(content, ">i4", offset=12).reshape(-1, 8)[: len(digits)]
    if not np.array_equal(rows[:, 0], digits):
        raise RunError(f"{RAW_FOLDER / name} has other labels than MNIST (delete both)")
    return {"writers": rows[:, 2].astype(np.uint16), "series": rows[:, 1].astype(np.uint8)}


def _download(folder: Path) -> None:
    from torchvision.datasets import QMNIST
    from torchvision.datasets.utils import download_url

    for split in ("train", "test"):
        url, md5 = QMNIST.resources[split][1]
        download_url(url, str(folder), md5=md5)
