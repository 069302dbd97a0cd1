"""HDF5 files of one split: writing, verifying, replacing."""

import hashlib
import os
import signal
from copy import copy
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from raw_mnist import IMAGES, LABELS, RAW_MNIST, copy_raw_mnist

from datasetprep import create_mnist_dataset as mnist
from datasetprep import h5_files
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records import h5


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


def test_images_of_other_shapes_are_refused(tmp_path):
    """The dataset could not read them; it reads three channels."""
    for shape in ((2, 8), (2, 8, 8, 2), (2, 8, 8, 3, 1)):
        images, labels = np.zeros(shape, np.uint8), np.zeros(2, np.uint8)
        read = partial(h5_files.RawSplit, images, labels, "mine", {})
        with pytest.raises(RunError, match=r"or in color \(N, H, W, 3\)"):
            h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, read)
    assert not list(tmp_path.iterdir())


def test_arrays_of_other_kinds_are_refused(tmp_path):
    images, labels = np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.uint8)
    for other in ((images / 255, labels), (images, labels[:1]), (images, np.eye(2))):
        raw = h5_files.RawSplit(other[0], other[1], "mine", {})
        with pytest.raises(RunError, match=r"mine: images .* and labels \(.*, expected uint8"):
            h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, partial(copy, raw))
    assert not list(tmp_path.iterdir())


def test_all_labels_of_a_source_are_kept(tmp_path):
    labels = np.array([200, 0, 3, 200], np.uint8)
    raw = h5_files.RawSplit(np.zeros((4, 8, 8, 3), np.uint8), labels, "mine", {})
    path = h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, lambda: raw)
    data = MnistH5Dataset(path)
    assert data.labels.tolist() == labels.tolist() and data.attributes["kept_labels"] == [0, 3, 200]


def test_more_images_than_a_file_may_hold_are_refused(tmp_path, monkeypatch):
    """What is written can be read: the limit is the reader's."""
    monkeypatch.setattr(h5, "LIMIT", 10_000)
    raw = h5_files.RawSplit(np.zeros((9, 16, 16), np.uint8), np.zeros(9, np.uint8), "mine", {})
    with pytest.raises(RunError, match="mine: 9 images take 2313 bytes, more than 10000"):
        h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, lambda: raw)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(h5, "LIMIT", 20_000)
    MnistH5Dataset(h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, lambda: raw))


def write_old_form(path, **changed):
    """Write what the first version wrote, with the attributes of ``path``'s file."""
    data = MnistH5Dataset(path)
    path.unlink()  # it is mapped
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = data.images, data.labels
        file.attrs.update(data.attributes | {"schema_version": 1} | changed)


def test_older_form_is_used_and_replaced(raw_mnist, tmp_path, capsys):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    content = path.read_bytes()
    write_old_form(path)
    data = MnistH5Dataset(path)
    data.check_attributes(dataset="mnist", split="train")
    assert data.source == "MNIST IDX files"
    assert np.array_equal(data.images, IMAGES)
    assert "43 images" in h5_files.verify(path)
    mnist.create_mnist_h5(path)
    assert "schema_version is 1, expected 2" in capsys.readouterr().out
    assert path.read_bytes() == content


def test_verify_compares_with_what_hdf5_finds(raw_mnist, tmp_path):
    """A header that describes other bytes, with the right hash, is not of the file's digits."""
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    content = path.read_bytes()
    hidden = LABELS[::-1].tobytes()
    old, new = (hashlib.sha256(each).hexdigest().encode() for each in (LABELS.tobytes(), hidden))
    header, rest = content[77:4096].replace(old, new), content[4096:] + hidden
    place = content.index(LABELS.tobytes(), 4096 + IMAGES.size)
    header = header.replace(str(place).encode(), str(len(content)).encode()).ljust(4019)[:4019]
    digest = hashlib.sha256(header + rest).hexdigest().encode()
    path.write_bytes(b"DJSW sha256 " + digest + b"\n" + header + rest)
    MnistH5Dataset(path).check_attributes()
    with pytest.raises(RunError, match="HDF5 finds other images in it"):
        h5_files.verify(path)


def test_what_killed_writers_left_is_removed_after_an_hour(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    old, new = tmp_path / ".m.h5.01234567.tmp", tmp_path / ".m.h5.89abcdef.tmp"
    others = tmp_path / ".mm.h5.01234567.tmp"
    for path in (old, new, others):
        path.touch()
        os.utime(path, times=(0, 0) if path != new else None)
    mnist.create_mnist_h5(tmp_path / "m.h5")
    assert [path.exists() for path in (old, new, others)] == [False, True, True]


def test_only_regular_files_are_replaced(tmp_path):
    with pytest.raises(UsageError, match="is not a regular file"):
        mnist.create_mnist_h5(os.devnull)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="is not a regular file"):
            mnist.create_mnist_h5(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system limits no file's size")
def test_full_disk_is_one_sentence(tmp_path, checkout, run_script):
    """The system's error, and nothing of HDF5's, which would write while the file is closed."""
    raw = checkout / "data" / "raw" / "mnist"
    raw.mkdir(parents=True)
    copy_raw_mnist(raw)
    script = checkout / "datasetprep" / "create_mnist_dataset.py"
    source = script.read_text()
    for name, published in mnist.RAW_SHA256.items():
        source = source.replace(published, hashlib.sha256(RAW_MNIST[name]).hexdigest())
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (35_000, 35_000))\n"
    script.write_text(source.replace("import shutil\n", limit + "import shutil\n"))
    created = run_script(script, "--train", "--output", tmp_path / "m.h5")
    assert created.returncode == 1
    assert created.stderr == f"error: File too large: {tmp_path / 'm.h5'}\n"
    assert not list(tmp_path.glob("*.h5*")) and not list(tmp_path.glob(".*"))


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

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="No space") as raised:
        mnist.create_mnist_h5(path, labels_to_keep=[1])
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "raw"]


@pytest.mark.parametrize("keep", [[], [4, 256], [-1]])
def test_labels_that_no_file_has_raise_an_error(tmp_path, keep):
    with pytest.raises(UsageError, match="give one or more from 0 to 255"):
        mnist.create_mnist_h5(tmp_path / "m.h5", labels_to_keep=keep)


def test_labels_without_images_raise_an_error(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    with pytest.raises(UsageError, match=r"MNIST IDX files has none of \[10, 37\]"):
        mnist.create_mnist_h5(tmp_path / "m.h5", labels_to_keep=[37, 4, 10])
    assert not (tmp_path / "m.h5").exists()


def test_verify_detects_one_altered_byte(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    assert "43 images" in h5_files.verify(path)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged, its SHA-256 is not that of its first line"):
        h5_files.verify(path)
    path.write_bytes(content)
    mnist.create_mnist_h5(path)
    write_old_form(path, images_sha256="0" * 64)
    with pytest.raises(RunError, match="altered, images_sha256 is"):
        h5_files.verify(path)


def test_verify_requires_all_attributes(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
        file.attrs["images_sha256"] = "3"
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
