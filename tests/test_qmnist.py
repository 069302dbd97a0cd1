"""Who wrote the digits of MNIST, by label files made here and, where they are, the real ones."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from raw_mnist import LABELS, copy_raw_mnist

from datasetprep import create_mnist_dataset, h5_files, qmnist
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset

NAMES = [*qmnist.MD5]
REAL = os.environ.get("DJSW_RAW_QMNIST")


def label_file(labels, first_writer):
    """Return gzipped rows of eight integers: more images than MNIST has, three writers."""
    rows = np.zeros((len(labels) + 5, 8), ">i4")
    rows[: len(labels), 0] = labels
    rows[:, 1] = np.arange(len(rows)) % 2 * 4
    rows[:, 2] = first_writer + np.arange(len(rows)) // 20
    return gzip.compress(struct.pack(">3i", 3074, *rows.shape) + rows.tobytes())


@pytest.fixture
def given(raw_mnist, tmp_path, monkeypatch):
    """A folder with label files of the synthetic MNIST, which have the expected hashes."""
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    folder = tmp_path / "given"
    folder.mkdir()
    contents = [label_file(LABELS, 300), label_file(LABELS[::-1], 2500)]
    for name, content in zip(NAMES, contents, strict=True):
        (folder / name).write_bytes(content)
    set_hashes(folder, monkeypatch)
    monkeypatch.setenv("DJSW_RAW_QMNIST", str(folder))
    return folder


def set_hashes(folder, monkeypatch):
    found = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in NAMES}
    monkeypatch.setattr(qmnist, "MD5", found)


def test_kept_digits_keep_their_writers(given, tmp_path, capsys):
    path = create_mnist_dataset.create_mnist_h5(tmp_path / "m.h5", labels_to_keep=[4, 5])
    data, kept = MnistH5Dataset(path), np.isin(LABELS, [4, 5])
    assert data.writers is not None and data.series is not None
    assert data.writers.tolist() == (300 + np.arange(43) // 20)[kept].tolist()
    assert data.series.tolist() == (np.arange(43) % 2 * 4)[kept].tolist()
    assert (data.writers.dtype, data.series.dtype) == (np.uint16, np.uint8)
    assert "images by 2 writers" in capsys.readouterr().out
    assert "by 2 writers, source MNIST IDX files" in h5_files.verify(path)
    assert data.source == "MNIST IDX files"
    test = MnistH5Dataset(create_mnist_dataset.create_mnist_h5(tmp_path / "t.h5", train=False))
    assert test.writers is not None and not {*test.writers} & {*data.writers}
    images, labels = data[[0, 1]]
    assert images.shape == (2, 1, 28, 28) and labels.tolist() == LABELS[kept][:2].tolist()


def test_changed_writers_are_noticed(given, tmp_path):
    path = create_mnist_dataset.create_mnist_h5(tmp_path / "m.h5")
    content = bytearray(path.read_bytes())
    content[content.index(np.full(20, 300, np.uint16).tobytes())] ^= 1
    line = b"DJSW sha256 "
    start = len(line) + 64 + 1
    content[len(line) : start - 1] = hashlib.sha256(content[start:]).hexdigest().encode()
    path.write_bytes(content)
    with pytest.raises(RunError, match="altered, writers_sha256 is"):
        MnistH5Dataset(path).check_attributes()


def test_without_label_files_the_writers_are_unknown(given, tmp_path, monkeypatch, capsys):
    (given / NAMES[0]).unlink()
    data = MnistH5Dataset(create_mnist_dataset.create_mnist_h5(tmp_path / "m.h5"))
    assert data.writers is data.series is None
    assert "note        writers unknown, intervals over blocks of images" in capsys.readouterr().out
    monkeypatch.delenv("DJSW_RAW_QMNIST")
    data = MnistH5Dataset(create_mnist_dataset.create_mnist_h5(tmp_path / "n.h5"))
    assert data.writers is None and "no network here" in capsys.readouterr().out


def test_wrong_label_files(given, tmp_path, monkeypatch, capsys):
    (given / NAMES[0]).write_bytes(label_file(LABELS[::-1], 300))
    create_mnist_dataset.create_mnist_h5(tmp_path / "m.h5")
    assert f"{NAMES[0]} has the MD5" in capsys.readouterr().out
    set_hashes(given, monkeypatch)
    with pytest.raises(RunError, match="has other labels than MNIST"):
        create_mnist_dataset.create_mnist_h5(tmp_path / "n.h5")
    monkeypatch.setenv("DJSW_RAW_QMNIST", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="DJSW_RAW_QMNIST"):
        create_mnist_dataset.create_mnist_h5(tmp_path / "o.h5")


@pytest.mark.usps
@pytest.mark.skipif(REAL is None, reason="set DJSW_RAW_QMNIST to a folder with QMNIST's labels")
def test_real_writers(tmp_path, monkeypatch):
    """297 and 539 people, none in both, and half of the test images are by students."""
    monkeypatch.setattr(qmnist, "RAW_FOLDER", tmp_path)
    monkeypatch.setenv("DJSW_RAW_QMNIST", str(REAL))
    found = {}
    for train, count in ((True, 60_000), (False, 10_000)):
        name = NAMES[0] if train else NAMES[1]
        content = gzip.decompress((Path(str(REAL)) / name).read_bytes())
        digits = np.frombuffer(content, ">i4", offset=12).reshape(-1, 8)[:count, 0]
        found[train] = qmnist.read_authors(train, digits, download=False)
    writers = {train: {*authors["writers"].tolist()} for train, authors in found.items()}
    assert (len(writers[False]), len(writers[True])) == (297, 539)
    assert not writers[False] & writers[True]
    assert np.bincount(found[False]["series"]).tolist() == [4999, 0, 0, 0, 5001]
