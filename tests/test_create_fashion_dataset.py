"""Fashion-MNIST: raw IDX files from every source to HDF5."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from raw_mnist import IMAGES, LABELS, RAW_MNIST, copy_raw_mnist

from datasetprep import create_fashion_dataset as fashion
from datasetprep import create_mnist_dataset as mnist
from utils.errors import RunError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.files import ROOT


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty raw folder, for which the synthetic files have the expected hashes."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in RAW_MNIST.items()}
    monkeypatch.setattr(fashion, "RAW_SHA256", hashes)
    monkeypatch.setattr(fashion, "RAW_FOLDER", tmp_path / "raw")
    monkeypatch.setattr(mnist, "_download", unreachable)
    return tmp_path / "raw"


def unreachable(*_: object) -> None:
    raise OSError("no route to host")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_user_s_files(raw, tmp_path, zipped):
    raw.mkdir()
    for name, content in RAW_MNIST.items():
        if zipped:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    path = fashion.create_fashion_h5(tmp_path / "f.h5", False, False, labels_to_keep=[9, 4])
    data, kept = MnistH5Dataset(path), np.isin(LABELS[::-1], [4, 9])
    assert np.array_equal(data.images, IMAGES[::-1][kept])
    assert np.array_equal(data.labels, LABELS[::-1][kept])
    assert (data.attributes["dataset"], data.attributes["split"]) == ("fashion", "test")
    assert data.source == "FashionMNIST IDX files"
    assert json.loads(data.attributes["raw_sha256"]) == {
        name: hashlib.sha256(RAW_MNIST[name]).hexdigest() for name in list(RAW_MNIST)[2:]
    }


def test_other_files_of_the_same_names_are_refused(raw, tmp_path, monkeypatch):
    """MNIST's files are named so too."""
    raw.mkdir()
    copy_raw_mnist(raw)
    expected = {name: "0" * 64 for name in RAW_MNIST}
    monkeypatch.setattr(fashion, "RAW_SHA256", expected)
    with pytest.raises(RunError, match=r"no source has them .* put the four files train-images"):
        fashion.create_fashion_h5(tmp_path / "f.h5", download=False)
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb (Debian)")
def test_debian_package(raw, tmp_path, monkeypatch, capfd):
    """The package is a real one; only apt-get, which downloads it, is not."""
    files = tmp_path / "tree" / "usr" / "share" / "datasets" / "fashion-mnist"
    files.mkdir(parents=True)
    for name, content in RAW_MNIST.items():
        (files / f"{name}.gz").write_bytes(gzip.compress(content))
    control = tmp_path / "tree" / "DEBIAN" / "control"
    control.parent.mkdir(mode=0o755)
    fields = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    control.write_text(fields)
    build = ["dpkg-deb", "-Znone", "--build", str(tmp_path / "tree"), str(tmp_path / "x_1_all.deb")]
    subprocess.run(build, check=True)
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f'#!/bin/sh\n[ "$*" = "download dataset-fashion-mnist" ]&&cp {build[-1]} .\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}{os.pathsep}{os.environ['PATH']}")
    path = fashion.create_fashion_h5(tmp_path / "f.h5")
    assert np.array_equal(MnistH5Dataset(path).images, IMAGES)
    assert "torchvision: no route to host" in capfd.readouterr().out
    assert sorted(os.listdir(raw / "FashionMNIST" / "raw")) == sorted(RAW_MNIST)


def test_error_without_any_source(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="no source has them"):
        fashion.create_fashion_h5(tmp_path / "f.h5")
    assert "apt-get or dpkg-deb is not installed" in capsys.readouterr().out


@pytest.mark.real
def test_real_files(tmp_path, monkeypatch):
    """Those of Debian are Zalando's: with name and time put back, they have torchvision's MD5."""
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "raw"
    raw.mkdir()
    try:
        fashion._download_from_debian(raw)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs Debian's package: {error}")
    seconds = {"train": 0x59A7E9DE, "t10k": 0x59A7E9F3}  # in 2017, when Zalando packed them
    for name, md5 in FashionMNIST.resources:
        content = (raw / "package/usr/share/datasets/fashion-mnist" / name).read_bytes()
        header = b"\x1f\x8b\x08\x08" + struct.pack("<IBB", seconds[name.partition("-")[0]], 0, 3)
        original = header + name.removesuffix(".gz").encode() + b"\0" + content[10:]
        assert hashlib.md5(original).hexdigest() == md5

    monkeypatch.setattr(fashion, "RAW_FOLDER", raw)
    for train, count in ((True, 6000), (False, 1000)):
        path = fashion.create_fashion_h5(tmp_path / f"{train}.h5", train, download=False)
        data, read = MnistH5Dataset(path), FashionMNIST(raw, train=train)
        assert np.bincount(data.labels).tolist() == [count] * 10
        assert np.array_equal(data.images, read.data.numpy())


def test_fashion_command(raw, tmp_path, run_script, capsys):
    script = ROOT / "datasetprep" / "create_fashion_dataset.py"
    helped = run_script(script, "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Fashion-MNIST's images" in helped.stdout
    raw.mkdir()
    copy_raw_mnist(raw)
    output = tmp_path / "f.h5"
    assert fashion.main(["--test", "--keep", "6,4", "--output", str(output)]) == 0
    assert set(MnistH5Dataset(output).labels.tolist()) == {4, 6}
    assert fashion.main(["--verify", str(output)]) == 0
    assert "fashion test" in capsys.readouterr().out
