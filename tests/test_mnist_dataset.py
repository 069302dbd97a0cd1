"""MnistH5Dataset against the arrays that were written, in every way of asking for them."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import digit_images, write_h5
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from utils.batches import batches, load_rows, predict
from utils.failures import RunError
from utils.mnist_dataset import DigitClasses, MnistH5Dataset

IMAGES, LABELS = digit_images((4, 5, 6, 7, 8, 9), (28, 28), 75)


SCALED = (IMAGES.astype(np.float32) / np.float32(255))[:, None]


STORAGE = {
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
def test_batches_of_any_index(path, index):
    images, labels = MnistH5Dataset(path)[index]
    rows = index if isinstance(index, slice) else np.asarray(index)
    rows = rows.astype(int) if isinstance(index, list) else rows
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert np.array_equal(images, SCALED[rows])
    assert np.array_equal(labels, LABELS[rows])


def test_result_is_the_caller_s_own(contiguous):
    data = MnistH5Dataset(contiguous)
    data[:][0].zero_()
    data[[0, 1]][0].zero_()
    assert np.array_equal(data[:][0], SCALED)


def test_no_hdf5_handle_stays_open(path):
    data = MnistH5Dataset(path)
    opened = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, opened) == 0
    assert np.array_equal(pickle.loads(pickle.dumps(data))[:][0], SCALED)


def test_contiguous_images_are_mapped_and_pickle_as_their_path(contiguous):
    data = MnistH5Dataset(contiguous)
    assert not data.images.flags.owndata
    assert not data.images.flags.writeable
    assert len(pickle.dumps(data)) < 1000


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


def test_relative_path_is_found_from_both_places(contiguous, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.files.ROOT", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        assert MnistH5Dataset("digits.h5").h5_path == contiguous
    with pytest.raises(FileNotFoundError) as raised:
        MnistH5Dataset("nothing.h5")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        assert str(folder / "nothing.h5") in str(raised.value)


def test_no_samples_at_all(path):
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
def test_workers_see_exactly_the_arrays(path, workers, method, by_index_batch):
    check_loader(path, workers, method, by_index_batch)


# Each worker imports torch, seconds of it: the two ways of batching take turns.
@pytest.mark.parametrize("method", ["spawn", *["forkserver"] * HAS_FORK])
@pytest.mark.parametrize(("workers", "by_index_batch"), [(1, False), (4, True)])
def test_started_workers_see_exactly_the_arrays(contiguous, workers, method, by_index_batch):
    check_loader(contiguous, workers, method, by_index_batch)


def test_usual_samplers(path):
    data = MnistH5Dataset(path)
    batch_sampler = BatchSampler(SequentialSampler(data), 32, drop_last=False)
    loader = DataLoader(data, sampler=batch_sampler, batch_size=None)
    assert [len(labels) for _, labels in loader] == [32, 32, 11]
    loader = DataLoader(data, sampler=RandomSampler(data), batch_size=32)
    assert sorted(torch.cat([labels for _, labels in loader]).tolist()) == sorted(LABELS.tolist())


def test_larger_files_give_the_same_batches_as_memory(contiguous, monkeypatch):
    data, device = MnistH5Dataset(contiguous), torch.device("cpu")
    rows = torch.arange(0, 70, 2)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    in_memory = load_rows(data, device, rows)
    monkeypatch.setattr("utils.batches.MEMORY_LIMIT", 4 * 35 * 784 - 1)
    from_file = load_rows(data, device, rows)
    assert type(in_memory) is not type(from_file)
    expected = list(batches(in_memory, order, 8, device))
    found = list(batches(from_file, order, 8, device))
    assert [len(labels) for _, labels in found] == [8, 8, 8, 8, 3]
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
    assert np.array_equal(torch.cat([images for images, _ in found]), SCALED[rows[order]])
    network = torch.nn.Flatten()
    for here, there in zip(
        predict(network, in_memory, device), predict(network, from_file, device), strict=True
    ):
        assert torch.equal(here, there)


BAD_FILES = {
    "no images": ({"labels": LABELS}, "holds no dataset 'images'"),
    "no labels": ({"images": IMAGES}, "holds no dataset 'labels'"),
    "unequal": ({"images": IMAGES, "labels": LABELS[:-1]}, "75 images but 74 labels"),
    "flat": ({"images": IMAGES.reshape(75, -1), "labels": LABELS}, r"uint8 \(75, 784\)"),
    "float": ({"images": IMAGES / 255, "labels": LABELS}, "float64"),
    "labels float": ({"images": IMAGES, "labels": LABELS / 2}, "labels float64"),
    "one-hot": ({"images": IMAGES, "labels": np.eye(75, dtype=np.uint8)}, r"\(75, 75\)"),
    "empty": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
    "no pixels": ({"images": IMAGES[:, :0], "labels": LABELS}, "holds no images"),
    "text": ({"images": IMAGES, "labels": [b"4"] * 75}, "holds labels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_the_value(tmp_path, name):
    arrays, message = BAD_FILES[name]
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for key, array in arrays.items():
            file[key] = array
    with pytest.raises(RunError, match=message) as raised:
        MnistH5Dataset(tmp_path / "bad.h5")
    assert str(tmp_path / "bad.h5") in str(raised.value)


def test_groups_named_images_are_refused(tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.create_group("images")
        file["labels"] = LABELS
    with pytest.raises(RunError, match="holds no dataset 'images'"):
        MnistH5Dataset(tmp_path / "bad.h5")


def test_not_hdf5_truncated_and_missing(contiguous, tmp_path):
    contiguous.write_bytes(contiguous.read_bytes()[:-1000])
    with pytest.raises(RunError, match="damaged or no HDF5"):
        MnistH5Dataset(contiguous)
    with h5py.File(contiguous, "w") as file:
        file.create_dataset("images", data=IMAGES, compression="gzip")
        file["labels"] = LABELS
        offset = file["images"].id.get_chunk_info(0).byte_offset
    content = bytearray(contiguous.read_bytes())
    content[offset : offset + 9] = b"\xff" * 9
    contiguous.write_bytes(content)
    with pytest.raises(RunError, match="damaged or no HDF5"):
        MnistH5Dataset(contiguous)
    contiguous.write_text("hello")
    with pytest.raises(RunError, match="damaged or no HDF5"):
        MnistH5Dataset(contiguous)
    with pytest.raises(FileNotFoundError):
        MnistH5Dataset(tmp_path / "nothing.h5")
