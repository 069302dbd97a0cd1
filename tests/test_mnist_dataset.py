"""MnistH5Dataset against the arrays that were written, for every kind of index and worker."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import digit_images, write_h5
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from datasetprep import h5_files
from utils.engine.batches import load_rows
from utils.errors import RunError
from utils.mnist_dataset import DigitClasses, MnistH5Dataset
from utils.records.h5 import h5_bytes

IMAGES, LABELS = digit_images((4, 5, 6, 7, 8, 9), (28, 28), 75)
SCALED = (IMAGES.astype(np.float32) / np.float32(255))[:, None]
STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "gzip": {"compression": "gzip"},
    "chunked": {"chunks": (1, 4, 4)},
}


@pytest.fixture(params=STORAGE)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_h5(tmp_path / "digits.h5", IMAGES, LABELS, **STORAGE[request.param])


@pytest.fixture
def contiguous(tmp_path: Path) -> Path:
    return write_h5(tmp_path / "digits.h5", IMAGES, LABELS)


def test_one_sample(path):
    data = MnistH5Dataset(path)
    assert len(data) == 75
    for index in (0, 74, -1, np.int64(3), torch.tensor(3)):
        image, label = data[index]
        assert image.dtype == torch.float32
        assert image.shape == (1, 28, 28)
        assert np.array_equal(image, SCALED[int(index)])
        assert type(label) is int
        assert label == LABELS[int(index)]
    with pytest.raises(IndexError):
        data[75]


@pytest.mark.parametrize(
    "index",
    [
        [5, 3, 3, 74],
        [],
        slice(None),
        slice(10, 50, 7),
        np.array([70, 1, -1]),
        torch.tensor([4, 2]),
        range(3),
        LABELS == 7,
    ],
    ids=str,
)
def test_batch_with_any_index(path, index):
    images, labels = MnistH5Dataset(path)[index]
    kind = int if isinstance(index, list) else None  # an empty list would become float
    rows = index if isinstance(index, slice) else np.asarray(index, kind)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert np.array_equal(images, SCALED[rows])
    assert np.array_equal(labels, LABELS[rows])


def test_changing_a_result_does_not_change_the_data(contiguous):
    data = MnistH5Dataset(contiguous)
    data[:][0].zero_()
    data[[0, 1]][0].zero_()
    assert np.array_equal(data[:][0], SCALED)


def test_no_hdf5_handle_stays_open(path):
    data = MnistH5Dataset(path)
    opened = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, opened) == 0
    assert np.array_equal(pickle.loads(pickle.dumps(data))[:][0], SCALED)


def ours(path: Path, **attributes: object) -> Path:
    """Write a file as ``datasetprep`` does, with the ``attributes``."""
    path.write_bytes(h5_bytes({"images": IMAGES, "labels": LABELS}, attributes))
    return path


def test_images_are_memory_mapped_and_pickled_as_a_path(contiguous, tmp_path):
    for path in (contiguous, ours(tmp_path / "ours.h5")):  # the first is a copy in memory
        data = MnistH5Dataset(path)
        assert not data.images.flags.owndata
        assert not data.images.flags.writeable
        assert len(pickle.dumps(data)) < 1000


def test_files_of_ours_are_mapped_where_hdf5_has_them_without_its_library(tmp_path, monkeypatch):
    path = ours(tmp_path / "digits.h5", schema_version=2)
    with h5py.File(path) as file:
        assert (file.userblock_size, file.attrs["schema_version"]) == (4096, 2)
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            assert np.array_equal(file[name], array)
            offset = file[name].id.get_offset()
            assert path.read_bytes()[offset:].startswith(array.tobytes())
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("h5py.File", None)
    data = MnistH5Dataset(path)
    with path.open("r+b") as file:  # what another process writes is seen through the map
        file.seek(path.read_bytes().index(IMAGES.tobytes()))
        file.write(b"\0" * 784)
    assert np.array_equal(data.labels, LABELS)
    assert np.array_equal(data.images[1:], IMAGES[1:])
    assert not data.images[0].any()


def test_any_changed_byte_of_a_file_of_ours_is_noticed(tmp_path):
    """Without its mark it is another tool's, whose attributes say that it was ours."""
    path = ours(tmp_path / "digits.h5", schema_version=2)
    content = path.read_bytes()
    places = np.random.default_rng(0).integers(12, len(content), 300)
    for place in (0, *range(12, 80), *places):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(RunError, match="damaged, its (SHA-256|first line) is not"):
            MnistH5Dataset(path)


def with_hash(header: bytes, rest: bytes) -> bytes:
    content = header.ljust(4096 - 77) + rest
    return b"DJSW sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


PLACES = '[["|u1", [1, 2, 2], 4096], ["|u1", [1], 4100]]'


@pytest.mark.parametrize(
    "header",
    [
        "",
        "3",
        "[" * 4000,
        '{"attributes": {}}',
        f'{{"attributes": [], "arrays": {PLACES}}}',
        f'{{"attributes": {{"split": 3}}, "arrays": {PLACES}}}',
        f'{{"attributes": {{"split": "a\\u001b[31m"}}, "arrays": {PLACES}}}',
        f'{{"attributes": {{"split": "\\ud800"}}, "arrays": {PLACES}}}',
        f'{{"attributes": {{"other": "a"}}, "arrays": {PLACES}}}',
        *(
            f'{{"attributes": {{}}, "arrays": {PLACES.replace(old, new)}}}'
            for old, new in [
                ("4096", "-1"),
                ("4096", "9000"),
                ("4096", "1e3"),
                ("4096", "9" * 40),
                ("[1]", "[-1, -1]"),
                ("[1]", "[100000000000000]"),
                ("[1]", "1"),
                ("|u1", "|O"),
                ("|u1", "u1,O"),
                ("|u1", "unknown"),
            ]
        ),
    ],
)
def test_hostile_header_with_the_right_hash_is_refused(tmp_path, header):
    path = tmp_path / "digits.h5"
    path.write_bytes(with_hash(header.encode(), bytes(100)))
    with pytest.raises(RunError) as raised:
        MnistH5Dataset(path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def external(file: h5py.File) -> None:
    raw = Path(file.filename).with_name("raw")
    raw.write_bytes(IMAGES.tobytes())
    file.create_dataset("images", IMAGES.shape, "u1", external=[(raw, 0, IMAGES.nbytes)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(IMAGES.shape, "u1")
    layout[:] = h5py.VirtualSource(".", "images", IMAGES.shape)  # itself
    file.create_virtual_dataset("images", layout)


def linked(file: h5py.File) -> None:
    write_h5(Path(file.filename).with_name("other.h5"), IMAGES, LABELS)
    file["images"] = h5py.ExternalLink("other.h5", "images")


def soft_linked(file: h5py.File) -> None:
    file["elsewhere"] = IMAGES
    file["images"] = h5py.SoftLink("/elsewhere")


def partly_written(file: h5py.File) -> None:
    file.create_dataset("images", IMAGES.shape, "u1", chunks=(5, 28, 28))[:70] = IMAGES[:70]


FOREIGN: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external storage": (external, "no dataset 'images' that is stored in the file itself"),
    "virtual": (virtual, "no dataset 'images' that is stored in the file itself"),
    "external link": (linked, "no dataset 'images' that is stored in the file itself"),
    "soft link": (soft_linked, "no dataset 'images' that is stored in the file itself"),
    "never written": (
        lambda file: file.create_dataset("images", IMAGES.shape, "u1"),
        "images were never written",
    ),
    "partly written": (partly_written, "images were never written, or only some of them"),
    "gigabytes of zeros": (
        lambda file: file.create_dataset("images", (10**8, 28, 28), "u1", chunks=(10**6, 28, 28)),
        r"images uint8 \(100000000, 28, 28\), expected .* at most 268435456 bytes",
    ),
    "more than 64 bits": (
        lambda file: file.create_dataset("images", (2**40, 2**12, 2**12), "u1", chunks=(9, 9, 9)),
        "expected integers of at most 268435456 bytes",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_only_digits_stored_in_the_file_itself_are_read(tmp_path, name):
    create, message = FOREIGN[name]
    with h5py.File(tmp_path / "digits.h5", "w") as file:
        create(file)
        file["labels"] = LABELS
    with pytest.raises(RunError, match=message):
        MnistH5Dataset(tmp_path / "digits.h5")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "attribute split is '3'"),
        ("a\nb", r"attribute split is 'a\\nb'"),
        (h5py.Empty("i4"), "damaged: Object of type Empty"),
        (np.void(b"\xff"), "damaged: Object of type bytes"),
        (np.array([b"\xff"], "S1"), "damaged: Object of type bytes"),
        ("x" * 5000, "attributes take more than 4019 bytes"),
    ],
    ids=["number", "newline", "empty", "opaque", "no text", "long"],
)
def test_odd_attributes_are_refused(contiguous, value, message):
    with h5py.File(contiguous, "r+") as file:
        file.attrs["split"] = value
        file.attrs["of others"] = h5py.Empty("i4")  # no matter
    with pytest.raises(RunError, match=message):
        MnistH5Dataset(contiguous)


def test_integers_of_four_bits_are_read_as_hdf5_reads_them(tmp_path):
    """In the file they are shifted, so that its bytes are not the values."""
    kind = h5py.h5t.STD_U8LE.copy()
    kind.set_precision(4)
    kind.set_offset(4)
    with h5py.File(tmp_path / "digits.h5", "w") as file:
        space = h5py.h5s.create_simple(IMAGES.shape)
        h5py.h5d.create(file.id, b"images", kind, space).write(
            h5py.h5s.ALL, h5py.h5s.ALL, IMAGES // 16
        )
        file["labels"] = LABELS
    assert np.array_equal(MnistH5Dataset(tmp_path / "digits.h5").images, IMAGES // 16)


def test_slurm_s_signals_do_not_reach_the_process_that_reads(tmp_path, monkeypatch):
    """Sent to every process of a step, one would look like a crash of the library."""
    with h5py.File(tmp_path / "digits.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS

    def run(command, **options):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            line = f"import os, signal; os.kill(os.getpid(), {number:d})"
            assert real([sys.executable, "-c", line]).returncode == 0
        return real(command, **options)

    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    assert len(MnistH5Dataset(tmp_path / "digits.h5")) == len(LABELS)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGUSR1, signal.SIGTERM}


def test_file_that_crashes_hdf5_is_refused(tmp_path):
    """One flipped bit, as in a file of USPS; the library of another version may refuse it."""
    path = tmp_path / "digits.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
        file.attrs.update(schema_version=1, dataset="usps", split="test", kept_labels=[0, 1, 2])
    content = bytearray(path.read_bytes())
    content[content.index(b"dataset\0\x19") + 9] ^= 2  # the kind of its variable length: a text
    path.write_bytes(content)
    with pytest.raises(RunError, match="crashes the HDF5 library, status -|damaged"):
        MnistH5Dataset(path)


def test_library_that_hangs_is_stopped(contiguous, monkeypatch):
    run = subprocess.run
    patient = {"timeout": 0.01}
    monkeypatch.setattr("subprocess.run", lambda *a, **options: run(*a, **options | patient))
    with pytest.raises(RunError, match="takes more than 10 s"):
        MnistH5Dataset(contiguous)


def test_pipes_devices_folders_and_huge_files_are_refused(tmp_path):
    paths = [tmp_path, Path(os.devnull)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        paths.append(tmp_path / "pipe")
    for path in paths:
        with pytest.raises(RunError, match="not a regular file"):
            MnistH5Dataset(path)
    with (tmp_path / "sparse.h5").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(RunError, match="10000000000 bytes, more than 268435456"):
        MnistH5Dataset(tmp_path / "sparse.h5")


def test_user_block_before_the_hdf5_data(tmp_path):
    path = tmp_path / "digits.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["images"], file["labels"] = IMAGES, LABELS
    assert np.array_equal(MnistH5Dataset(path)[:][0], SCALED)


def test_file_locks_are_not_needed(contiguous):
    fcntl = pytest.importorskip("fcntl")
    with contiguous.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(MnistH5Dataset(contiguous)) == 75


def test_transforms_are_called_per_sample(path):
    data = MnistH5Dataset(path, lambda image: image.sum(), lambda t: int(t) - 4)
    image, label = data[7]
    assert image == torch.from_numpy(SCALED[7]).sum()
    assert label == LABELS[7] - 4
    images, labels = data[[7, 8]]
    assert images.shape == (2,)
    assert labels.tolist() == [LABELS[7] - 4, LABELS[8] - 4]
    images, labels = next(iter(DataLoader(data, batch_size=5)))
    assert images.shape == (5,)
    assert labels.tolist() == [label - 4 for label in LABELS[:5]]


def test_relative_path_from_working_directory_or_root(contiguous, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.records.files.ROOT", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        assert MnistH5Dataset("digits.h5").h5_path == contiguous
    with pytest.raises(FileNotFoundError) as raised:
        MnistH5Dataset("nothing.h5")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        assert str(folder / "nothing.h5") in str(raised.value)


def test_empty_batches(path):
    data = MnistH5Dataset(path, torch.sum, lambda t: t)
    assert [len(part) for part in data[[]]] == [0, 0]
    assert data.__getitems__([]) == []


def test_digit_classes_look_up_whole_arrays(path):
    calls = []

    class Counting(DigitClasses):
        def __call__(self, labels):
            calls.append(np.shape(labels))
            return super().__call__(labels)

    data = MnistH5Dataset(path, target_transform=Counting([9, 4, 7]))
    expected = [{9: 0, 4: 1, 7: 2}.get(label, -1) for label in LABELS.tolist()]
    assert data[:][1].tolist() == expected
    assert calls == [(75,)]
    assert data[3][1] == expected[3]
    assert type(data[3][1]) is int


def check_loader(path: Path, workers: int, method: str | None, by_index_batch: bool) -> None:
    data = MnistH5Dataset(path, target_transform=DigitClasses([4, 5, 6, 7, 8, 9]))
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0))
    batching = (
        {"sampler": order.split(32), "batch_size": None}
        if by_index_batch
        else {"sampler": order.tolist(), "batch_size": 32}
    )
    loader = DataLoader(data, num_workers=workers, multiprocessing_context=method, **batching)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert np.array_equal(images, SCALED[order])
    assert np.array_equal(labels, LABELS[order].astype(np.int64) - 4)


HAS_FORK = hasattr(os, "fork")


@pytest.mark.parametrize("by_index_batch", [True, False])
@pytest.mark.parametrize(("workers", "method"), [(0, None), *[(1, "fork"), (4, "fork")] * HAS_FORK])
def test_forked_workers_return_exactly_the_arrays(path, workers, method, by_index_batch):
    check_loader(path, workers, method, by_index_batch)


# Importing torch takes each worker seconds, so each number of workers tests one kind of batching.
@pytest.mark.parametrize("method", ["spawn", *["forkserver"] * HAS_FORK])
@pytest.mark.parametrize(("workers", "by_index_batch"), [(1, False), (4, True)])
def test_spawned_workers_return_exactly_the_arrays(contiguous, workers, method, by_index_batch):
    check_loader(contiguous, workers, method, by_index_batch)


def test_usual_samplers(path):
    data = MnistH5Dataset(path)
    batch_sampler = BatchSampler(SequentialSampler(data), 32, drop_last=False)
    loader = DataLoader(data, sampler=batch_sampler, batch_size=None)
    assert [len(labels) for _, labels in loader] == [32, 32, 11]
    loader = DataLoader(data, sampler=RandomSampler(data), batch_size=32)
    assert sorted(torch.cat([labels for _, labels in loader]).tolist()) == sorted(LABELS.tolist())


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"labels": LABELS}, "no dataset 'images'"),
    "no labels": ({"images": IMAGES}, "no dataset 'labels'"),
    "unequal": ({"images": IMAGES, "labels": LABELS[:-1]}, "75 images but 74 labels"),
    "flat": ({"images": IMAGES.reshape(75, -1), "labels": LABELS}, r"images uint8 \(75, 784\)"),
    "float": ({"images": IMAGES / 255, "labels": LABELS}, "float64"),
    "labels float": ({"images": IMAGES, "labels": LABELS / 2}, "labels float64"),
    "one-hot": ({"images": IMAGES, "labels": np.eye(75, dtype=np.uint8)}, r"\(75, 75\)"),
    "empty": ({"images": IMAGES[:0], "labels": LABELS[:0]}, ": no images"),
    "no pixels": ({"images": IMAGES[:, :0], "labels": LABELS}, ": no images"),
    "text": ({"images": IMAGES, "labels": [b"4"] * 75}, ": labels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_raise_an_error_with_the_value(tmp_path, name):
    arrays, message = BAD_FILES[name]
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for key, array in arrays.items():
            file[key] = array
    with pytest.raises(RunError, match=message) as raised:
        MnistH5Dataset(tmp_path / "bad.h5")
    assert str(tmp_path / "bad.h5") in str(raised.value)


def test_group_named_images_raises_an_error(tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.create_group("images")
        file["labels"] = LABELS
    with pytest.raises(RunError, match="no dataset 'images'"):
        MnistH5Dataset(tmp_path / "bad.h5")


def test_attributes_are_checked_where_the_file_has_them(contiguous):
    MnistH5Dataset(contiguous).check_attributes(split="test", kept_labels=[4, 5])
    with h5py.File(contiguous, "r+") as file:
        file.attrs.update({"split": "test", "kept_labels": [4, 5]})
    MnistH5Dataset(contiguous).check_attributes(split="test", kept_labels=[4, 5])
    with pytest.raises(RunError, match=r"kept_labels is \[4, 5\], expected \[4, 6\]"):
        MnistH5Dataset(contiguous).check_attributes(split="test", kept_labels=[4, 6])
    with h5py.File(contiguous, "r+") as file:
        file.attrs["labels_sha256"] = "0" * 64
    with pytest.raises(RunError, match=f"altered, labels_sha256 is .*, expected {'0' * 64}"):
        MnistH5Dataset(contiguous).check_attributes()


def test_truncated_damaged_other_and_missing_files(contiguous, tmp_path):
    contiguous.write_bytes(contiguous.read_bytes()[:-1000])
    with pytest.raises(RunError, match="not an HDF5 file, or damaged"):
        MnistH5Dataset(contiguous)
    with h5py.File(contiguous, "w") as file:
        file.create_dataset("images", data=IMAGES, compression="gzip")
        file["labels"] = LABELS
        offset = file["images"].id.get_chunk_info(0).byte_offset
    content = bytearray(contiguous.read_bytes())
    content[offset : offset + 9] = b"\xff" * 9
    contiguous.write_bytes(content)
    with pytest.raises(RunError, match="not an HDF5 file, or damaged"):
        MnistH5Dataset(contiguous)
    contiguous.write_text("hello")
    with pytest.raises(RunError, match="not an HDF5 file, or damaged"):
        MnistH5Dataset(contiguous)
    with pytest.raises(FileNotFoundError):
        MnistH5Dataset(tmp_path / "nothing.h5")


@pytest.mark.parametrize("ours", [True, False])
def test_color_images(tmp_path, ours):
    """Height, width and channels of the file are channels, height and width of the tensor."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    if ours:
        raw = h5_files.RawSplit(images, labels, "mine", {})
        path = h5_files.create_h5(tmp_path / "c.h5", "mine", True, None, lambda: raw)
    else:
        path = write_h5(tmp_path / "c.h5", images, labels)
    data = MnistH5Dataset(path)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for index in (slice(None), [4, 0], np.array([1])):
        assert torch.equal(data[index][0], expected[index])
    assert torch.equal(data[3][0], expected[3]) and data[3][0].is_contiguous()
    assert torch.equal(torch.stack([x for x, _ in data.__getitems__([2, 1])]), expected[[2, 1]])
    samples = load_rows(data, torch.device("cpu"))
    assert torch.equal(samples[slice(0, 5)][0], expected)
    write_h5(tmp_path / "d.h5", images[..., :2], labels)
    with pytest.raises(RunError, match=r"expected uint8 \(N, H, W\) or \(N, H, W, 3\)"):
        MnistH5Dataset(tmp_path / "d.h5")
