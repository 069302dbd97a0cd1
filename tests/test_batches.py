"""Batches of a split, and a thread that prepares them."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from DJSW.pipelines import DATASETS, open_split
from utils.engine import batches as module
from utils.engine.batches import batches, load_rows, one_ahead, predict
from utils.mnist_dataset import MnistH5Dataset

CPU = torch.device("cpu")


def test_batches_are_rows_of_the_file_scaled_as_numpy_does(processed):
    data = open_split("usps_0_6", train=True)
    file = MnistH5Dataset(processed / DATASETS["usps_0_6"].train_file)
    scaled = file.images.astype(np.float32) / np.float32(255)
    rows = torch.arange(0, 70, 2)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    found = list(batches(load_rows(data, CPU, rows), order, 8))
    assert [len(classes) for _, classes, _ in found] == [8, 8, 8, 8, 3]
    assert [size for *_, size in found] == [8, 8, 8, 8, 3]
    images = torch.cat([images for images, *_ in found])
    assert images.shape == (35, 1, 16, 16)
    assert np.array_equal(images[:, 0], scaled[rows[order]])
    expected = [DATASETS["usps_0_6"].labels.index(k) for k in file.labels[rows[order]]]
    assert torch.cat([classes for _, classes, _ in found]).tolist() == expected
    assert list(batches(load_rows(data, CPU, rows), order[:0], 8)) == []


def test_predictions_of_all_rows_in_order(processed, monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_BATCH", 50)
    samples = load_rows(open_split("usps_0_6", train=True), CPU)
    logits, classes = predict(nn.Flatten(), samples)
    images, expected = samples[:]
    assert torch.equal(logits, images.flatten(1))
    assert torch.equal(classes, expected) and len(classes) == 120


@pytest.mark.parametrize(("wanted", "cores"), [(True, 2), (True, 1), (False, 2)])
def test_one_ahead_yields_the_same_items(monkeypatch, wanted, cores):
    monkeypatch.setattr(module, "cores", lambda: cores)
    makers = []

    def items():
        for number in range(5):
            makers.append((number, threading.current_thread() is threading.main_thread()))
            yield number

    found = []
    for number in one_ahead(items(), wanted=wanted):
        found.append(number)
        if number == 2 and wanted and cores == 2:
            until = time.monotonic() + 10
            while len(makers) < 4 and time.monotonic() < until:
                time.sleep(0.001)  # the next item is made while this one is used
            assert [made for made, _ in makers] == [0, 1, 2, 3]
    assert found == list(range(5))
    assert {main for _, main in makers} == {not (wanted and cores == 2)}


def test_errors_of_the_thread_reach_the_loop(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 2)

    def items():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(one_ahead(items(), wanted=True))
