"""HDF5 files of one split: writing, verifying, replacing."""

import os

import h5py
import numpy as np
import pytest
from raw_mnist import IMAGES, LABELS, RAW_MNIST, copy_raw_mnist

from datasetprep import create_mnist_dataset as mnist
from datasetprep import h5_files
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset


def test_same_digits_give_same_bytes_and_are_written_once(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    first = mnist.create_mnist_h5(tmp_path / "a.h5")
    second = mnist.create_mnist_h5(tmp_path / "b.h5")
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns, first.stat().st_ino
    for name in RAW_MNIST:
        (raw_mnist / "MNIST" / "raw" / name).unlink()  # not needed if the file exists
    mnist.create_mnist_h5(tmp_path / "a.h5", download=False)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before


def test_color_images_are_refused(tmp_path):
    """The dataset could not read them."""
    color = h5_files.RawSplit(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.uint8), "mine", {})
    with pytest.raises(RunError, match=r"mine: images \(2, 8, 8, 3\), expected gray ones"):
        h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, lambda: color)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("contents", ["test split", "other digits", "altered", "not hdf5"])
def test_file_with_other_contents_is_replaced(raw_mnist, tmp_path, contents):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = tmp_path / "m.h5"
    if contents == "test split":
        mnist.create_mnist_h5(path, train=False)
    elif contents == "not hdf5":
        path.write_text("hello")
    else:
        mnist.create_mnist_h5(path, labels_to_keep=[1] if contents == "other digits" else None)
    if contents == "altered":
        with h5py.File(path, "r+") as file:
            file["images"][3, 3, 3] ^= 1
    mnist.create_mnist_h5(path)
    assert np.array_equal(MnistH5Dataset(path).images, IMAGES)
    h5_files.verify(path)


def test_failed_write_keeps_the_old_file(raw_mnist, tmp_path, monkeypatch):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5_files, "array_hashes", fails)
    with pytest.raises(OSError, match="No space") as raised:
        mnist.create_mnist_h5(path, labels_to_keep=[1])
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "raw"]


@pytest.mark.parametrize("keep", [[], [4, 10], [-1]])
def test_labels_that_are_not_digits_raise_an_error(tmp_path, keep):
    with pytest.raises(UsageError, match="one or more digits"):
        mnist.create_mnist_h5(tmp_path / "m.h5", labels_to_keep=keep)


def test_verify_detects_one_altered_byte(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    assert "43 images" in h5_files.verify(path)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="altered, images_sha256 is"):
        h5_files.verify(path)


def test_verify_requires_all_attributes(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
        file.attrs["images_sha256"] = 3
    with pytest.raises(RunError, match="missing attributes schema_version, .*labels_sha256"):
        h5_files.verify(tmp_path / "old.h5")


def test_output_folder_must_exist(raw_mnist, tmp_path, monkeypatch):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    monkeypatch.chdir(tmp_path)
    assert mnist.create_mnist_h5("here.h5") == tmp_path / "here.h5"
    for output in ("nowhere/m.h5", tmp_path / "nowhere" / "m.h5", tmp_path):
        with pytest.raises(UsageError, match="--output"):
            mnist.create_mnist_h5(output)
    assert sorted(os.listdir(tmp_path)) == ["here.h5", "raw"]
