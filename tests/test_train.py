"""The training loop, against a plain one in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import (
    StopAfter,
    files_of,
    not_finite,
    rows_of,
    small_checkpointer,
    small_model,
    small_problem,
    train_small,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, random_split

from DJSW.recipes import Settings
from DJSW.train import train_pipeline
from utils.engine.optimizer import Adam
from utils.engine.seeds import epoch_order, split_rows
from utils.errors import RunError, Stopped
from utils.records.checkpoint import load_checkpoint, weights_sha256


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_equals_a_plain_float64_loop(tmp_path):
    settings = Settings(num_epochs=3, batch_size=5, lr=0.05, seed=7)
    model, run = train_small(tmp_path, settings)

    reference = small_model().double()
    images, classes = small_problem()[:]
    validation_images, validation_classes = small_problem(10)[:]
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.05, foreach=False, fused=False)
    for epoch, row in enumerate(run.history.rows, start=1):
        total = 0.0
        for index in epoch_order(23, 7, epoch).split(5):  # the last batch has 3
            loss = F.cross_entropy(reference(images[index].double()), classes[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        assert row["train_loss"] == pytest.approx(total / 23, rel=1e-5)
        with torch.no_grad():
            logits = reference(validation_images.double())
        validation_loss = F.cross_entropy(logits, validation_classes).item()
        assert row["validation_loss"] == pytest.approx(validation_loss, rel=1e-5)
        correct = (logits.argmax(1) == validation_classes).sum().item()
        assert row["validation_accuracy"] == correct / 10
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    settings = Settings(num_epochs=2, batch_size=5, lr=0.05, seed=1)
    (first, run), (second, again) = (train_small(tmp_path, settings, name=name) for name in "ab")
    assert without_seconds(run.history.rows) == without_seconds(again.history.rows)
    assert weights_sha256(first.state_dict()) == weights_sha256(second.state_dict())
    other, _ = train_small(tmp_path, Settings(2, 5, 0.05, seed=2), name="c")
    assert weights_sha256(first.state_dict()) != weights_sha256(other.state_dict())


def test_every_epoch_has_every_image_once_in_a_different_order():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(epoch_order(100, 2**63 - 1, 1), epoch_order(100, 2**63 - 1, 1))


def test_split_is_nine_to_one_and_ignores_the_global_seed():
    torch.manual_seed(1)
    training, validation = split_rows(35_246)
    torch.manual_seed(2)
    again, _ = split_rows(35_246)
    assert torch.equal(training, again)
    assert (len(training), len(validation)) == (31_722, 3_524)
    assert sorted(torch.cat([training, validation]).tolist()) == list(range(35_246))
    rows = TensorDataset(torch.arange(35_246))
    expected = random_split(rows, [0.9, 0.1], generator=torch.Generator().manual_seed(42))
    assert training.tolist() == list(expected[0].indices)
    with pytest.raises(RunError, match="9 images are too few"):
        split_rows(9)


@pytest.mark.parametrize("parts", [2, 5, 7])
def test_folds_by_writers_share_none(parts):
    random = np.random.default_rng(0)
    writers = random.integers(0, 40, 1000) ** 2
    seen = []
    for part in range(1, parts + 1):
        training, validation = split_rows(1000, f"{part}/{parts}/writers", writers)
        assert not {*writers[training.numpy()]} & {*writers[validation.numpy()]}
        assert abs(len(validation) - 1000 / parts) < 60  # a writer has 25 images
        assert sorted(torch.cat([training, validation]).tolist()) == list(range(1000))
        seen += validation.tolist()
    assert sorted(seen) == list(range(1000))


def test_loss_that_is_not_finite_stops_at_once(tmp_path):
    data = small_problem()
    data = replace(data, images=data.images.float())
    data.images[11] = math.nan
    settings = Settings(num_epochs=3, batch_size=5, lr=0.01, seed=0)
    run = small_checkpointer(tmp_path, settings)
    step = epoch_order(23, 0, 1).tolist().index(11) // 5 + 1
    with pytest.raises(RunError, match=f"loss is nan in epoch 1, step {step};"):
        train_pipeline(small_model(), data, small_problem(10), settings, run)
    assert files_of(tmp_path) == {}


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, expected = train_small(tmp_path, Settings(5, 5, 0.05, seed=3), name="whole")
    train_small(tmp_path, Settings(2, 5, 0.05, seed=3), name="parts", resume=True)
    with (tmp_path / "parts_history.csv").open("a") as file:
        file.write("3,0.1,0.1,0.1,0.1,0.1\n")  # as if killed before the state was written
    model, run = train_small(tmp_path, Settings(5, 5, 0.05, seed=3), name="parts", resume=True)
    assert weights_sha256(model.state_dict()) == weights_sha256(whole.state_dict())
    assert without_seconds(run.history.rows) == without_seconds(expected.history.rows)
    assert rows_of(run) == run.history.rows
    best = [load_checkpoint(r.files.best_checkpoint).weights for r in (run, expected)]
    assert weights_sha256(best[0]) == weights_sha256(best[1])
    assert [session["first_epoch"] for session in run.record.sessions] == [1, 3]
    model, run = train_small(tmp_path, Settings(5, 5, 0.05, seed=3), name="parts", resume=True)
    assert len(run.history) == 5, "there is nothing to do"


def test_dropout_acts_in_training_only(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 2))
    _, run = train_small(
        tmp_path, Settings(1, 23, 1e-30, seed=0), model
    )  # the step changes nothing
    images, classes = small_problem()[:]
    validation_images, validation_classes = small_problem(10)[:]
    with torch.no_grad():
        model.eval()
        expected = F.cross_entropy(model(validation_images), validation_classes).item()
        without = F.cross_entropy(model(images), classes).item()
    assert run.history.rows[0]["validation_loss"] == pytest.approx(expected, rel=1e-6)
    assert run.history.rows[0]["train_loss"] != pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 6, 11])
def test_stopped_within_an_epoch_and_resumed(tmp_path, monkeypatch, steps):
    """With dropout, whose masks must be those of the uninterrupted run."""
    data = small_problem()

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 2))

    settings = Settings(3, 5, 0.05, seed=3)  # 5 steps an epoch
    whole, expected = train_small(tmp_path, settings, model(), name="whole", data=data)
    with monkeypatch.context() as patch:
        patch.setattr("utils.engine.checkpointer.stop_request", StopAfter(steps))
        with pytest.raises(Stopped, match="stopped by SIGTERM in epoch"):
            train_small(tmp_path, settings, model(), name="parts", data=data)
    torch.rand(7)  # the process has drawn other random numbers since
    again, run = train_small(tmp_path, settings, model(), name="parts", resume=True, data=data)
    assert (run.record.sessions[1]["first_epoch"], run.record.sessions[1]["first_step"]) == (
        (steps - 1) // 5 + 1 if steps % 5 else steps // 5,
        steps % 5 + 1 if steps % 5 else 6,
    )
    assert without_seconds(run.history.rows) == without_seconds(expected.history.rows)
    assert weights_sha256(again.state_dict()) == weights_sha256(whole.state_dict())


def test_validation_loss_that_is_not_finite(tmp_path):
    """With one step an epoch, the training loss is from before the update that diverges."""
    with pytest.raises(RunError, match="validation loss is (nan|inf) after epoch 1;"):
        train_small(tmp_path, Settings(2, 100, 1e38, seed=0))
    assert files_of(tmp_path) == {}


def test_loss_is_checked_within_a_long_epoch_too(tmp_path, monkeypatch):
    data = not_finite(small_problem(1000))
    taken = []
    original = Adam.step

    def step(self):
        taken.append(1)
        original(self)

    monkeypatch.setattr(Adam, "step", step)
    with pytest.raises(RunError, match="epoch 1, step 1;"):
        train_small(tmp_path, Settings(1, 1, 0.01, seed=0), data=data)
    assert len(taken) == 100
