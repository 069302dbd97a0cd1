"""The HDF5 file of one split: written, checked, replaced."""

import os

import h5py
import numpy as np
import pytest
from raw_mnist import IMAGES, LABELS, RAW_MNIST, copy_raw_mnist

from datasetprep import create_mnist_dataset as mnist
from datasetprep import h5_files
from utils.failures import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset


def test_same_digits_same_bytes_and_no_second_write(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    first = mnist.create_mnist_h5(tmp_path / "a.h5")
    second = mnist.create_mnist_h5(tmp_path / "b.h5")
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns, first.stat().st_ino
    for name in RAW_MNIST:
        (raw_mnist / "MNIST" / "raw" / name).unlink()  # not needed for a file that is there
    mnist.create_mnist_h5(tmp_path / "a.h5", download=False)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before


@pytest.mark.parametrize("was", ["test split", "other digits", "altered", "not hdf5"])
def test_another_file_in_its_place_is_replaced(raw_mnist, tmp_path, was):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = tmp_path / "m.h5"
    if was == "test split":
        mnist.create_mnist_h5(path, train=False)
    elif was == "not hdf5":
        path.write_text("hello")
    else:
        mnist.create_mnist_h5(path, labels_to_keep=[1] if was == "other digits" else None)
    if was == "altered":
        with h5py.File(path, "r+") as file:
            file["images"][3, 3, 3] ^= 1
    mnist.create_mnist_h5(path)
    assert np.array_equal(MnistH5Dataset(path).images, IMAGES)
    h5_files.verify(path)


def test_a_write_that_fails_leaves_the_old_file(raw_mnist, tmp_path, monkeypatch):
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
def test_labels_that_are_no_digits_are_refused(tmp_path, keep):
    with pytest.raises(UsageError, match="no digits"):
        mnist.create_mnist_h5(tmp_path / "m.h5", labels_to_keep=keep)


def test_verify_finds_one_altered_byte(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    assert "43 images" in h5_files.verify(path)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="altered: its images_sha256"):
        h5_files.verify(path)


def test_verify_of_a_file_that_states_nothing(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
        file.attrs["images_sha256"] = 3
    with pytest.raises(RunError, match="lacks the attributes schema_version, .*labels_sha256"):
        h5_files.verify(tmp_path / "old.h5")


def test_output_goes_to_an_existing_folder_only(raw_mnist, tmp_path, monkeypatch):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    monkeypatch.chdir(tmp_path)
    assert mnist.create_mnist_h5("here.h5") == tmp_path / "here.h5"
    for output in ("nowhere/m.h5", tmp_path / "nowhere" / "m.h5", tmp_path):
        with pytest.raises(UsageError, match="--output"):
            mnist.create_mnist_h5(output)
    assert sorted(os.listdir(tmp_path)) == ["here.h5", "raw"]
