"""The training loop against a plain one, and what makes runs comparable."""

import csv
import json
import math
import os
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from DJSW.train import Settings, epoch_order, split_rows, train_pipeline
from utils.adam import Adam
from utils.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from utils.failures import RunError, Stopped, UsageError
from utils.files import writing
from utils.record import facts
from utils.training_run import TrainingRun

ABOUT = {"model": {"name": "M", "arguments": {}}, "dataset": {"name": "d"}, "classes": [0, 1]}
CPU = torch.device("cpu")
FACTS = facts(CPU, [{"node": "here", "device": "a processor"}])


def small_problem(count=23):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 2, 2, generator=generator)
    classes = (images.sum((1, 2, 3)) > 2).long()
    return TensorDataset(images, classes)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def train(folder, settings, model=None, name="run", resume=False, data=None):
    model = model or small_model()
    run = TrainingRun(
        folder=folder, exp_name=name, facts=FACTS, about={**ABOUT, "settings": vars(settings)}
    )
    data = data or small_problem()
    train_pipeline(model, data, small_problem(10), settings, run, CPU, resume=resume)
    return model, run


def rows_of(run):
    with run.history_file.open(newline="") as file:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_equals_a_plain_float64_loop(tmp_path):
    settings = Settings(num_epochs=3, batch_size=5, lr=0.05, seed=7)
    model, run = train(tmp_path, settings)

    reference = small_model().double()
    images, classes = small_problem().tensors
    validation_images, validation_classes = small_problem(10).tensors
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.05, foreach=False, fused=False)
    for epoch, row in enumerate(run.history, start=1):
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
        loss = F.cross_entropy(logits, validation_classes).item()
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-5)
        right = (logits.argmax(1) == validation_classes).sum().item()
        assert row["validation_accuracy"] == right / 10
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    settings = Settings(num_epochs=2, batch_size=5, lr=0.05, seed=1)
    (first, run), (second, again) = (train(tmp_path, settings, name=name) for name in "ab")
    assert without_seconds(run.history) == without_seconds(again.history)
    assert weights_sha256(first.state_dict()) == weights_sha256(second.state_dict())
    other, _ = train(tmp_path, Settings(2, 5, 0.05, seed=2), name="c")
    assert weights_sha256(first.state_dict()) != weights_sha256(other.state_dict())


def test_every_image_once_an_epoch_in_an_order_of_its_own():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(epoch_order(100, 2**63 - 1, 1), epoch_order(100, 2**63 - 1, 1))


def test_split_is_nine_to_one_and_the_same_whatever_was_drawn_before():
    torch.manual_seed(1)
    training, validation = split_rows(35_246)
    torch.manual_seed(2)
    again, _ = split_rows(35_246)
    assert torch.equal(training, again)
    assert (len(training), len(validation)) == (31_722, 3_524)
    assert sorted(torch.cat([training, validation]).tolist()) == list(range(35_246))
    expected = torch.utils.data.random_split(
        range(35_246), [0.9, 0.1], generator=torch.Generator().manual_seed(42)
    )
    assert training.tolist() == list(expected[0].indices)
    with pytest.raises(RunError, match="9 images are too few"):
        split_rows(9)


def test_what_a_training_leaves(tmp_path):
    settings = Settings(num_epochs=12, batch_size=5, lr=0.2, seed=0)
    model, run = train(tmp_path, settings)
    names = {path.name.removeprefix("run_") for path in tmp_path.iterdir()}
    assert names == {
        "checkpoint_best.pt",
        "checkpoint_epoch_10.pt",
        "checkpoint_epoch_12.pt",
        "curves.png",
        "history.csv",
        "resume.pt",
        "run.json",
        "tensorboard",
    }
    best = min(run.history, key=lambda row: row["validation_loss"])
    assert best["epoch"] < 12, "the case where best and last differ"
    checkpoint = load_checkpoint(run.best_file)
    assert checkpoint.about["epoch"] == best["epoch"]
    assert checkpoint.about["metrics"] == best
    last = load_checkpoint(tmp_path / "run_checkpoint_epoch_12.pt")
    assert weights_sha256(last.weights) == weights_sha256(model.state_dict())

    assert rows_of(run) == run.history

    record = json.loads(run.record_file.read_text())
    assert record["status"] == "finished"
    assert record["results"]["best"]["epoch"] == best["epoch"]
    assert record["results"]["last"]["weights_sha256"] == weights_sha256(model.state_dict())
    assert record["results"]["best"]["weights_sha256"] == weights_sha256(checkpoint.weights)
    assert record["sessions"][0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert run.file("curves.png").read_bytes().startswith(b"\x89PNG")


def test_loss_that_is_not_finite_stops_at_once(tmp_path):
    data = small_problem()
    data.tensors[0][11] = math.nan
    run = TrainingRun(folder=tmp_path, exp_name="run", facts=FACTS)
    settings = Settings(num_epochs=3, batch_size=5, lr=0.01, seed=0)
    step = epoch_order(23, 0, 1).tolist().index(11) // 5 + 1
    with pytest.raises(RunError, match=f"loss is nan in epoch 1, step {step};"):
        train_pipeline(small_model(), data, small_problem(10), settings, run, CPU)
    assert not run.best_file.exists()


def test_resumed_training_equals_one_never_stopped(tmp_path):
    whole, expected = train(tmp_path, Settings(5, 5, 0.05, seed=3), name="whole")
    train(tmp_path, Settings(2, 5, 0.05, seed=3), name="parts", resume=True)
    with (tmp_path / "parts_history.csv").open("a") as file:
        file.write("3,0.1,0.1,0.1,0.1,0.1\n")  # as if killed before the state was written
    model, run = train(tmp_path, Settings(5, 5, 0.05, seed=3), name="parts", resume=True)
    assert weights_sha256(model.state_dict()) == weights_sha256(whole.state_dict())
    assert without_seconds(run.history) == without_seconds(expected.history)
    assert rows_of(run) == run.history
    best = [load_checkpoint(r.best_file).weights for r in (run, expected)]
    assert weights_sha256(best[0]) == weights_sha256(best[1])
    assert [session["first_epoch"] for session in run.sessions] == [1, 3]
    model, run = train(tmp_path, Settings(5, 5, 0.05, seed=3), name="parts", resume=True)
    assert len(run.history) == 5, "there is nothing left to do"


def test_dropout_acts_in_training_only(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 2))
    _, run = train(tmp_path, Settings(1, 23, 1e-30, seed=0), model)  # as good as no step
    images, classes = small_problem().tensors
    validation_images, validation_classes = small_problem(10).tensors
    with torch.no_grad():
        model.eval()
        expected = F.cross_entropy(model(validation_images), validation_classes).item()
        without = F.cross_entropy(model(images), classes).item()
    assert run.history[0]["validation_loss"] == pytest.approx(expected, rel=1e-6)
    assert run.history[0]["train_loss"] != pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [{"model": {"name": "N", "arguments": {}}}, {"classes": [1, 2]}, {"dataset": {"name": "e"}}],
    ids=str,
)
def test_resuming_something_else_is_refused(tmp_path, change, monkeypatch):
    settings = Settings(1, 5, 0.05, seed=3)
    train(tmp_path, settings)
    monkeypatch.setattr(sys.modules[__name__], "ABOUT", {**ABOUT, **change})
    with pytest.raises(UsageError, match="was trained with"):
        train(tmp_path, settings, resume=True)


def test_code_that_changed_between_sessions_is_noted(tmp_path, capsys, monkeypatch):
    train(tmp_path, Settings(1, 5, 0.05, seed=3))
    other = {**FACTS, "source": {**FACTS["source"], "models/smlp.py": "0"}}
    monkeypatch.setitem(globals(), "FACTS", other)
    _, run = train(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)
    note = "with changed code in models/smlp.py: perhaps no longer the bits of a run in one go"
    assert f"note        {note}\n" in capsys.readouterr().out
    changes = [session["change"] for session in json.loads(run.record_file.read_text())["sessions"]]
    assert changes == [None, note]


def test_error_that_ends_a_training_is_in_its_record(tmp_path):
    settings = Settings(num_epochs=3, batch_size=5, lr=0.01, seed=0)
    about = {**ABOUT, "settings": vars(settings)}
    run = TrainingRun(folder=tmp_path, exp_name="run", about=about, facts=FACTS)
    with pytest.raises(IsADirectoryError), run.locked():
        run.save_epoch = lambda *_: (tmp_path / "nowhere").mkdir() or (tmp_path / "nowhere").open()
        train_pipeline(small_model(), small_problem(), small_problem(10), settings, run, CPU)
    record = json.loads(run.record_file.read_text())
    assert record["status"] == "failed"
    assert "Is a directory" in record["sessions"][0]["ended_by"]
    assert f"'{tmp_path}" not in run.record_file.read_text(), "no absolute path"
    train(tmp_path, settings, resume=True)
    sessions = json.loads(run.record_file.read_text())["sessions"]
    assert [session["ended_by"] == "finished" for session in sessions] == [False, True]
    assert "Is a directory" in sessions[0]["ended_by"]


def test_resuming_for_fewer_epochs_is_refused(tmp_path):
    train(tmp_path, Settings(3, 5, 0.05, seed=3))
    with pytest.raises(
        UsageError, match="3 epochs already, done or begun; give --num_epochs 3 or more"
    ):
        train(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)


def test_resuming_without_the_epoch_that_was_begun_is_refused(tmp_path, monkeypatch):
    """Its weights are ahead of the last finished epoch's."""
    settings = Settings(3, 5, 0.05, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr("DJSW.train.stop_request", StopAfter(7))  # in epoch 2
        with pytest.raises(Stopped):
            train(tmp_path, settings)
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match="2 epochs already, done or begun"):
        train(tmp_path, Settings(1, 5, 0.05, seed=3), resume=True)
    assert files_of(tmp_path) == before
    train(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)


def test_two_processes_do_not_work_on_one_name(tmp_path):
    pytest.importorskip("fcntl")
    with (
        TrainingRun(folder=tmp_path, exp_name="run").locked(),
        TrainingRun(folder=tmp_path, exp_name="other").locked(),
        pytest.raises(UsageError, match="being trained by another process"),
        TrainingRun(folder=tmp_path, exp_name="run").locked(),
    ):
        pass
    with TrainingRun(folder=tmp_path, exp_name="run").locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", unsupported)
    train(tmp_path, Settings(1, 5, 0.05, seed=3))
    with pytest.raises(UsageError, match="was trained before"):
        train(tmp_path, Settings(1, 5, 0.05, seed=3))
    with pytest.raises(FileExistsError), writing(tmp_path / "run_run.json", exclusive=True) as path:
        path.write_text("x")


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"seed": 4}, {"batch_size": 6}])
def test_resuming_with_other_settings_names_the_difference(tmp_path, change):
    settings = {"num_epochs": 1, "batch_size": 5, "lr": 0.05, "seed": 3}
    train(tmp_path, Settings(**settings))
    before = files_of(tmp_path)
    (name, value), *_ = change.items()
    with pytest.raises(UsageError, match=f"settings.{name} {settings[name]}, not {value}"):
        train(tmp_path, Settings(**settings | change), resume=True)
    assert files_of(tmp_path) == before


def test_names_are_used_once(tmp_path):
    settings = Settings(1, 5, 0.05, seed=3)
    train(tmp_path, settings)
    with pytest.raises(UsageError, match="was trained before.*--resume"):
        train(tmp_path, settings)
    (tmp_path / "run_resume.pt").unlink()
    for resume in (False, True):
        with pytest.raises(UsageError, match="was trained before.*another --exp_name$"):
            train(tmp_path, settings, resume=resume)
    train(tmp_path, settings, name="run_2")
    (tmp_path / "a_checkpoint_epoch_1_checkpoint_epoch_2.pt").touch()
    train(tmp_path, settings, name="a")
    (tmp_path / "other_resume.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="other_resume.pt is empty"):
        train(tmp_path, settings, name="other", resume=True)
    torch.save({"format": "djsw-state-2"}, tmp_path / "other_resume.pt")
    with pytest.raises(UsageError, match="no state that this version can resume"):
        train(tmp_path, settings, name="other", resume=True)


class StopAfter:
    """A stop request that comes in the n-th step."""

    def __init__(self, steps):
        self.steps = steps

    @property
    def signal(self):
        self.steps -= 1
        return "SIGTERM" if self.steps <= 0 else None


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 6, pytest.param(11, id="not in memory")])
def test_stopped_within_an_epoch_and_resumed(tmp_path, monkeypatch, steps, request):
    """With dropout, whose draws must be those of the training that is not stopped."""
    data = small_problem()
    if "not in memory" in request.node.name:
        data = Subset(data, torch.arange(len(data)))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 2))

    settings = Settings(3, 5, 0.05, seed=3)  # 5 steps an epoch
    whole, expected = train(tmp_path, settings, model(), name="whole", data=data)
    with monkeypatch.context() as patch:
        patch.setattr("DJSW.train.stop_request", StopAfter(steps))
        with pytest.raises(Stopped, match="stopped by SIGTERM in epoch"):
            train(tmp_path, settings, model(), name="parts", data=data)
    torch.rand(7)  # the process goes on elsewhere in its random numbers
    again, run = train(tmp_path, settings, model(), name="parts", resume=True, data=data)
    assert (run.sessions[1]["first_epoch"], run.sessions[1]["first_step"]) == (
        (steps - 1) // 5 + 1 if steps % 5 else steps // 5,
        steps % 5 + 1 if steps % 5 else 6,
    )
    assert without_seconds(run.history) == without_seconds(expected.history)
    assert weights_sha256(again.state_dict()) == weights_sha256(whole.state_dict())


def test_validation_loss_that_is_not_finite(tmp_path):
    """One step an epoch: its loss is taken before the update that does the harm."""
    with pytest.raises(RunError, match="validation loss is (nan|inf) after epoch 1;"):
        train(tmp_path, Settings(2, 100, 1e38, seed=0))
    assert files_of(tmp_path) == {}


def test_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    data = small_problem()
    train(tmp_path, Settings(1, 5, 0.01, seed=0))
    state = (tmp_path / "run_resume.pt").read_bytes()
    data.tensors[0].fill_(math.nan)
    monkeypatch.setattr("DJSW.train.stop_request", StopAfter(2))
    with pytest.raises(RunError, match=r"epoch 2, step 1; .* earlier epochs are kept"):
        train(tmp_path, Settings(2, 5, 0.01, seed=0), resume=True, data=data)
    assert (tmp_path / "run_resume.pt").read_bytes() == state
    record = json.loads((tmp_path / "run_run.json").read_text())
    assert record["status"] == "failed"
    assert "the loss is nan" in record["reason"]


def test_within_a_long_epoch_too_a_loss_is_looked_at(tmp_path, monkeypatch):
    data = small_problem(1000)
    data.tensors[0][:] = math.nan
    taken = []
    original = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self: (taken.append(1), original(self)))
    with pytest.raises(RunError, match="epoch 1, step 1;"):
        train(tmp_path, Settings(1, 1, 0.01, seed=0), data=data)
    assert len(taken) == 100


def test_seconds_of_an_interrupted_epoch_are_added_up(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("DJSW.train.stop_request", StopAfter(2))
        with pytest.raises(Stopped):
            train(tmp_path, Settings(1, 5, 0.05, seed=3))
    state = torch.load(tmp_path / "run_resume.pt", weights_only=True)
    assert state["seconds"] > 0
    torch.save({**state, "seconds": 1000.0}, tmp_path / "run_resume.pt")
    _, run = train(tmp_path, Settings(1, 5, 0.05, seed=3), resume=True)
    assert 1000 < run.history[0]["seconds"] < 1100
    assert all(session["seconds"] > 0 for session in run.sessions)


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path):
    stale = tmp_path / ".run_checkpoint_best.pt.0123abcd.tmp"
    others = tmp_path / ".run_2_checkpoint_best.pt.0123abcd.tmp"
    for path in (stale, others):
        path.touch()
    train(tmp_path, Settings(1, 5, 0.05, seed=3))
    assert not stale.exists()
    assert others.exists()


def test_what_is_finished_is_left_alone(tmp_path, capsys):
    settings = Settings(2, 5, 0.05, seed=3)
    train(tmp_path, settings)
    before = files_of(tmp_path)
    capsys.readouterr()
    _, run = train(tmp_path, settings, resume=True)
    assert capsys.readouterr().out == "finished    before; nothing is left to do\n"
    assert files_of(tmp_path) == before
    assert len(run.history) == 2
    record = json.loads(run.record_file.read_text())
    # as if killed before its end
    run.record_file.write_text(json.dumps({**record, "status": "running"}))
    train(tmp_path, settings, resume=True)
    assert json.loads(run.record_file.read_text())["status"] == "finished"


def test_best_checkpoint_is_the_record_s_though_killed_after_a_later_one(tmp_path):
    settings = Settings(1, 5, 0.05, seed=3)
    _, run = train(tmp_path, settings)
    best = load_checkpoint(run.best_file)
    later = {name: tensor + 1 for name, tensor in best.weights.items()}
    save_checkpoint(run.best_file, later, {**best.about, "epoch": 2})
    run.record_file.unlink()
    train(tmp_path, settings, resume=True)
    again = load_checkpoint(run.best_file)
    assert again.about["epoch"] == 1
    assert weights_sha256(again.weights) == weights_sha256(best.weights)


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    synced, original = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), original(file)))
    with writing(tmp_path / "a") as path:
        path.write_text("a")
    assert len(synced) == 1
