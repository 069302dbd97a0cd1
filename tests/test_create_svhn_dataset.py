"""SVHN: .mat files to HDF5, made here in the form of the published ones."""

import hashlib
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import SVHN

from datasetprep import create_svhn_dataset as svhn
from datasetprep import raw_files
from utils.errors import RunError
from utils.records.files import ROOT

DIGITS = np.resize(np.array([1, 10, 2, 9, 5], dtype=np.uint8), 23)  # 10 is the digit 0
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 23)).astype(np.uint8)


def write_mat(
    path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray, digits: np.ndarray
) -> Path:
    """Write the file of a split and make its MD5 the published one, torchvision's too."""
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"X": images, "y": digits[:, None]}, do_compression=len(digits) < 100)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(svhn.MD5, path.name, md5)
    split = path.name.partition("_")[0]
    url, name, _ = SVHN.split_list[split]
    monkeypatch.setitem(SVHN.split_list, split, [url, name, md5])
    return path


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(svhn, "RAW_FOLDER", tmp_path / "raw")
    return tmp_path / "raw"


def test_hashes_are_torchvision_s():
    published = {name: md5 for _, name, md5 in SVHN.split_list.values()}
    assert svhn.MD5.items() <= published.items()


@pytest.mark.parametrize("train", [True, False])
def test_images_in_colour_and_the_digit_0(raw, tmp_path, monkeypatch, train):
    name = "train_32x32.mat" if train else "test_32x32.mat"
    mat = write_mat(raw / name, monkeypatch, IMAGES, DIGITS)
    path = svhn.create_svhn_h5(tmp_path / "s.h5", train, download=False, labels_to_keep=[0, 9])
    kept = [n for n, digit in enumerate(DIGITS) if digit in (10, 9)]
    with h5py.File(path) as file:
        images, labels, attributes = file["images"][:], file["labels"][:], dict(file.attrs)
    assert (images.dtype, images.shape) == (np.uint8, (len(kept), 32, 32, 3))
    for image, n in zip(images, kept, strict=True):
        assert np.array_equal(image, IMAGES[:, :, :, n])
    assert labels.tolist() == [DIGITS[n] % 10 for n in kept]
    assert (attributes["dataset"], attributes["split"]) == ("svhn", "train" if train else "test")
    hashes = {name: hashlib.sha256(mat.read_bytes()).hexdigest()}
    assert json.loads(attributes["raw_sha256"]) == hashes
    assert attributes["images_sha256"] == hashlib.sha256(images.tobytes()).hexdigest()


def test_missing_or_altered_files_are_downloaded(raw, tmp_path, monkeypatch):
    content = write_mat(raw / "test_32x32.mat", monkeypatch, IMAGES, DIGITS).read_bytes()
    (raw / "test_32x32.mat").write_bytes(content[:-1])
    found = hashlib.md5(content[:-1]).hexdigest()
    expected = f"test_32x32.mat has the MD5 {found}, expected {svhn.MD5['test_32x32.mat']}"
    with pytest.raises(RunError, match=f"{expected}; put test_32x32.mat into {raw}"):
        svhn.create_svhn_h5(tmp_path / "s.h5", train=False, download=False)
    assert not (tmp_path / "s.h5").exists()

    def download(dataset: SVHN) -> None:
        (Path(dataset.root) / dataset.filename).write_bytes(content)

    monkeypatch.setattr(SVHN, "download", download)
    svhn.create_svhn_h5(tmp_path / "s.h5", train=False)
    assert os.listdir(raw) == ["test_32x32.mat"]
    assert (raw / "test_32x32.mat").read_bytes() == content


def test_files_above_the_limit_of_the_others(raw, tmp_path, monkeypatch):
    """The published training file has 182 MB, above the limit for the other datasets."""
    count = raw_files.LIMIT // 3072 + 1
    images, digits = np.zeros((32, 32, 3, count), np.uint8), np.ones(count, np.uint8)
    images[..., -1], digits[-1] = 7, 3
    path = write_mat(raw / "train_32x32.mat", monkeypatch, images, digits)
    assert raw_files.LIMIT < path.stat().st_size < 182_040_794 < svhn.LIMIT
    svhn.create_svhn_h5(tmp_path / "s.h5", download=False, labels_to_keep=[3])
    with h5py.File(tmp_path / "s.h5") as file:
        assert np.array_equal(file["images"][:], np.full((1, 32, 32, 3), 7))


def test_svhn_command(raw, tmp_path, run_script, monkeypatch, capsys):
    script = ROOT / "datasetprep" / "create_svhn_dataset.py"
    helped = run_script(script, "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    write_mat(raw / "test_32x32.mat", monkeypatch, IMAGES, DIGITS)
    assert svhn.main(["--test", "--output", str(tmp_path / "s.h5")]) == 0
    assert "23 images" in capsys.readouterr().out
