"""Files of a run, names in use, and runs that are killed, stopped and resumed."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
import small_runs
import torch
from records import changed
from small_runs import (
    METADATA,
    PROVENANCE,
    StopAfter,
    command,
    files_of,
    not_finite,
    outcome,
    rows_of,
    small_checkpointer,
    small_model,
    small_problem,
    train_small,
)

from DJSW import pipelines
from DJSW.main import main
from DJSW.recipes import Settings
from DJSW.train import train_pipeline
from utils.engine.history import COLUMNS
from utils.engine.state import State, write_state
from utils.errors import RunError, Stopped, UsageError
from utils.records.checkpoint import load_checkpoint, weights_sha256, write_checkpoint
from utils.records.files import atomic_write
from utils.records.provenance import source_hashes
from utils.records.run_files import RunFiles


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_storm(processed, tmp_path, kills):
    """A run that is killed at random moments ends with the results of an undisturbed one."""
    epochs, context = 12 * kills, multiprocessing.get_context("forkserver")
    folders = {name: tmp_path / name for name in ("calm", "storm")}
    for folder in folders.values():
        folder.mkdir()
    moments, killed = random.Random(0), 0
    steps: set[tuple[int, int]] = set()
    state = folders["storm"] / "e_resume.pt"
    while killed < kills:
        child = context.Process(target=command, args=(processed, folders["storm"], epochs, 0.001))
        before = state.stat().st_mtime_ns if state.exists() else 0
        child.start()
        if killed % 4:  # killed after it has saved a state, else while it starts
            while child.exitcode is None and not (
                state.exists() and state.stat().st_mtime_ns > before
            ):
                time.sleep(0.01)
        child.join(moments.uniform(0.0, 0.1))
        if child.exitcode is not None:
            break
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        killed += 1
        if state.exists():
            saved = torch.load(state, weights_only=True)
            steps.add((len(saved["history"]), len(saved["losses"])))
    assert killed == kills, "the run finished too early"
    assert len(steps) > kills / 3, "it was killed at different steps"
    assert any(step for _, step in steps), "also within epochs"
    for folder in folders.values():
        child = context.Process(target=command, args=(processed, folder, epochs, 1000))
        child.start()
        child.join()
        assert child.exitcode == 0
    assert outcome(folders["storm"]) == outcome(folders["calm"])
    record = json.loads((folders["storm"] / "e_run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["sessions"]) > 3


def test_disk_that_fills_up_in_the_middle(processed, tmp_path, monkeypatch, capsys):
    flags = ["--username", "waly", "--train", "--exp_name", "e", "--output_dir", str(tmp_path)]
    (tmp_path / "calm").mkdir()
    calm = [*flags[:-1], str(tmp_path / "calm"), "--num_epochs", "4"]
    assert main(calm) == 0
    (tmp_path / "full").mkdir()
    full = [*flags[:-1], str(tmp_path / "full"), "--num_epochs", "4", "--resume"]
    write, writes = Path.write_bytes, []

    def write_until_full(path, content):
        writes.append(path)
        if len(writes) > 4:
            write(path, bytes(content)[:1000])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    assert main(full) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: No space left on device: " + str(tmp_path / "full"))
    assert error.count("\n") == 1
    load_checkpoint(tmp_path / "full" / "e_checkpoint_best.pt")  # the earlier one, complete
    monkeypatch.undo()
    monkeypatch.setattr(pipelines, "PROCESSED", processed)
    assert main(full) == 0
    assert outcome(tmp_path / "full") == outcome(tmp_path / "calm")


def test_files_of_a_run(tmp_path):
    settings = Settings(num_epochs=12, batch_size=5, lr=0.2, seed=0)
    model, run = train_small(tmp_path, settings)
    names = {path.name.removeprefix("run_") for path in tmp_path.iterdir()}
    assert names == {
        "checkpoint_best.pt",
        "checkpoint_epoch_10.pt",
        "checkpoint_epoch_12.pt",
        "history.csv",
        "resume.pt",
        "run.json",
    }
    best = min(run.history.rows, key=lambda row: row["validation_loss"])
    assert best["epoch"] < 12, "the case where best and last differ"
    checkpoint = load_checkpoint(run.files.best_checkpoint)
    assert checkpoint.metadata["epoch"] == best["epoch"]
    assert checkpoint.metadata["metrics"] == best
    last = load_checkpoint(tmp_path / "run_checkpoint_epoch_12.pt")
    assert weights_sha256(last.weights) == weights_sha256(model.state_dict())

    assert rows_of(run) == run.history.rows

    record = json.loads(run.files.record.read_text())
    assert record["status"] == "finished"
    assert record["results"]["best"]["epoch"] == best["epoch"]
    assert record["results"]["last"]["weights_sha256"] == weights_sha256(model.state_dict())
    assert record["results"]["best"]["weights_sha256"] == weights_sha256(checkpoint.weights)
    assert record["sessions"][0]["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    "change",
    [{"model": {"name": "N", "arguments": {}}}, {"classes": [1, 2]}, {"dataset": {"name": "e"}}],
    ids=str,
)
def test_resuming_something_else_is_refused(tmp_path, change, monkeypatch):
    settings = Settings(1, 5, 0.05, seed=3)
    train_small(tmp_path, settings)
    monkeypatch.setattr(small_runs, "METADATA", {**METADATA, **change})
    with pytest.raises(UsageError, match="was trained with"):
        train_small(tmp_path, settings, resume=True)


def test_code_that_changed_between_sessions_is_noted(tmp_path, capsys, monkeypatch):
    source = source_hashes()
    monkeypatch.setattr(small_runs, "PROVENANCE", {**PROVENANCE, "source": source})
    train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    other = {**PROVENANCE, "source": {**source, "models/smlp.py": "0"}, "source_sha256": "1"}
    monkeypatch.setattr(small_runs, "PROVENANCE", other)
    _, run = train_small(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)
    note = "with changed code in models/smlp.py: "
    note += "the bits may differ from those of an uninterrupted run"
    assert f"note        {note}\n" in capsys.readouterr().out
    changes = [
        session["change"] for session in json.loads(run.files.record.read_text())["sessions"]
    ]
    assert changes == [None, note]


def test_error_that_ends_a_run_is_in_its_record(tmp_path):
    settings = Settings(num_epochs=3, batch_size=5, lr=0.01, seed=0)
    run = small_checkpointer(tmp_path, settings)
    run.after_epoch = lambda *_: (tmp_path / "nowhere").mkdir() or (tmp_path / "nowhere").open()
    with pytest.raises(IsADirectoryError):
        train_pipeline(small_model(), small_problem(), small_problem(10), settings, run)
    record = json.loads(run.files.record.read_text())
    assert record["status"] == "failed"
    assert "Is a directory" in record["sessions"][0]["ended_by"]
    assert f"'{tmp_path}" not in run.files.record.read_text(), "no absolute path"
    train_small(tmp_path, settings, resume=True)
    sessions = json.loads(run.files.record.read_text())["sessions"]
    assert [session["ended_by"] == "finished" for session in sessions] == [False, True]
    assert "Is a directory" in sessions[0]["ended_by"]


def test_resuming_for_fewer_epochs_is_refused(tmp_path):
    train_small(tmp_path, Settings(3, 5, 0.05, seed=3))
    with pytest.raises(UsageError, match="started 3 epochs already; give --num_epochs 3 or more"):
        train_small(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)


def test_resuming_without_the_epoch_that_was_begun_is_refused(tmp_path, monkeypatch):
    """The weights saved are ahead of the last finished epoch's."""
    settings = Settings(3, 5, 0.05, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr("utils.engine.checkpointer.stop_request", StopAfter(7))  # in epoch 2
        with pytest.raises(Stopped):
            train_small(tmp_path, settings)
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match="started 2 epochs already"):
        train_small(tmp_path, Settings(1, 5, 0.05, seed=3), resume=True)
    assert files_of(tmp_path) == before
    train_small(tmp_path, Settings(2, 5, 0.05, seed=3), resume=True)


def test_two_processes_do_not_work_on_one_name(tmp_path):
    pytest.importorskip("fcntl")
    with (
        RunFiles(tmp_path, "run").locked(),
        RunFiles(tmp_path, "other").locked(),
        pytest.raises(UsageError, match="being trained by another process"),
        RunFiles(tmp_path, "run").locked(),
    ):
        pass
    with RunFiles(tmp_path, "run").locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", unsupported)
    train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    with pytest.raises(UsageError, match="was trained before"):
        train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    with (
        pytest.raises(FileExistsError),
        atomic_write(tmp_path / "run_run.json", exclusive=True) as path,
    ):
        path.write_text("x")


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"seed": 4}, {"batch_size": 6}])
def test_resuming_with_other_settings_names_the_difference(tmp_path, change):
    settings: dict[str, Any] = {"num_epochs": 1, "batch_size": 5, "lr": 0.05, "seed": 3}
    train_small(tmp_path, Settings(**settings))
    before = files_of(tmp_path)
    (name, value), *_ = change.items()
    with pytest.raises(UsageError, match=f"trained with {name} {settings[name]}, not {value}"):
        train_small(tmp_path, Settings(**settings | change), resume=True)
    assert files_of(tmp_path) == before


def test_names_are_used_once(tmp_path):
    settings = Settings(1, 5, 0.05, seed=3)
    train_small(tmp_path, settings)
    with pytest.raises(UsageError, match="was trained before.*--resume"):
        train_small(tmp_path, settings)
    (tmp_path / "run_resume.pt").unlink()
    for resume in (False, True):
        with pytest.raises(UsageError, match="was trained before.*another --exp_name$"):
            train_small(tmp_path, settings, resume=resume)
    train_small(tmp_path, settings, name="run_2")
    (tmp_path / "a_checkpoint_epoch_1_checkpoint_epoch_2.pt").touch()
    train_small(tmp_path, settings, name="a")
    (tmp_path / "other_resume.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="other_resume.pt is empty"):
        train_small(tmp_path, settings, name="other", resume=True)
    torch.save({"format": "djsw-state-2"}, tmp_path / "other_resume.pt")
    with pytest.raises(UsageError, match="not a state that this version can resume"):
        train_small(tmp_path, settings, name="other", resume=True)


def test_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    train_small(tmp_path, Settings(1, 5, 0.01, seed=0))
    state = (tmp_path / "run_resume.pt").read_bytes()
    data = not_finite(small_problem())
    monkeypatch.setattr("utils.engine.checkpointer.stop_request", StopAfter(2))
    with pytest.raises(RunError, match=r"epoch 2, step 1; .* earlier epochs are kept"):
        train_small(tmp_path, Settings(2, 5, 0.01, seed=0), resume=True, data=data)
    assert (tmp_path / "run_resume.pt").read_bytes() == state
    record = json.loads((tmp_path / "run_run.json").read_text())
    assert record["status"] == "failed"
    assert "the loss is nan" in record["reason"]


def test_seconds_of_an_interrupted_epoch_are_added_up(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("utils.engine.checkpointer.stop_request", StopAfter(2))
        with pytest.raises(Stopped):
            train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    state = torch.load(tmp_path / "run_resume.pt", weights_only=True)
    assert state["seconds"] > 0
    write_state(tmp_path / "run_resume.pt", state | {"seconds": 1000.0})
    _, run = train_small(tmp_path, Settings(1, 5, 0.05, seed=3), resume=True)
    assert 1000 < run.history.rows[0]["seconds"] < 1100
    assert all(session["seconds"] > 0 for session in run.record.sessions)


def test_finished_run_is_left_unchanged(tmp_path, capsys):
    settings = Settings(2, 5, 0.05, seed=3)
    train_small(tmp_path, settings)
    before = files_of(tmp_path)
    capsys.readouterr()
    _, run = train_small(tmp_path, settings, resume=True)
    assert capsys.readouterr().out == "finished    before; nothing to do\n"
    assert files_of(tmp_path) == before
    assert len(run.history) == 2
    # as if killed just before the end
    changed(run.files.record, lambda record: record.update(status="running"))
    train_small(tmp_path, settings, resume=True)
    assert json.loads(run.files.record.read_text())["status"] == "finished"


def test_files_of_a_finished_run_are_restored(tmp_path):
    """Files that were replaced or removed are those of the state again; no session is added."""
    settings = Settings(12, 5, 0.2, seed=0)
    _, run = train_small(tmp_path, settings)
    best, last = run.files.best_checkpoint, run.files.epoch_checkpoint(12)
    weights = {path: weights_sha256(load_checkpoint(path).weights) for path in (best, last)}
    assert weights[best] != weights[last]
    before = files_of(tmp_path)
    swapped = before[best], before[last]
    for of_best, of_last in (swapped[::-1], (None, None), (b"", b"")):
        for path, content in ((best, of_best), (last, of_last)):
            path.unlink()
            _ = content is not None and path.write_bytes(content)
        run.files.history.write_text("epoch\n1\n")
        train_small(tmp_path, settings, resume=True)
        found = {path: weights_sha256(load_checkpoint(path).weights) for path in (best, last)}
        assert found == weights
        unchanged = files_of(tmp_path)
        assert unchanged.keys() == before.keys()
        assert all(unchanged[path] == before[path] for path in before.keys() - weights.keys())


def test_foreign_last_checkpoint_is_replaced(tmp_path, monkeypatch):
    """What lies under its name when the run ends is of another run."""
    settings = Settings(2, 5, 0.05, seed=3)
    _, other = train_small(tmp_path, settings, name="other")
    with monkeypatch.context() as patch:
        patch.setattr("utils.engine.checkpointer.stop_request", StopAfter(7))  # in epoch 2
        with pytest.raises(Stopped):
            train_small(tmp_path, Settings(2, 5, 0.1, seed=4))
    last = tmp_path / "run_checkpoint_epoch_2.pt"
    last.write_bytes(other.files.epoch_checkpoint(2).read_bytes())
    model, run = train_small(tmp_path, Settings(2, 5, 0.1, seed=4), resume=True)
    expected = weights_sha256(model.state_dict())
    assert weights_sha256(load_checkpoint(last).weights) == expected
    results = json.loads(run.files.record.read_text())["results"]
    assert results["last"]["weights_sha256"] == expected


def test_what_lies_where_the_events_go_is_kept(tmp_path):
    events, elsewhere = tmp_path / "run_tensorboard", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("x")
    settings = Settings(1, 5, 0.05, seed=3)
    for resume in (False, True):
        events.symlink_to(elsewhere)
        before = files_of(tmp_path)
        with pytest.raises(UsageError, match=r"run_tensorboard exists; give another --exp_name$"):
            train_small(tmp_path, settings, resume=resume)
        assert files_of(tmp_path) == before
        events.unlink()
    events.mkdir()
    with pytest.raises(UsageError, match="run_tensorboard exists"):
        train_small(tmp_path, settings)
    events.rmdir()
    with pytest.raises(RunError, match="epoch 1"):
        train_small(tmp_path, settings, data=not_finite(small_problem()))
    train_small(tmp_path, settings)


def test_reasons_of_several_lines_are_escaped(tmp_path):
    """Else the record and the state would be refused when they are read."""
    settings = Settings(2, 5, 0.05, seed=3)
    run = small_checkpointer(tmp_path, settings)

    def fail(_):
        raise RuntimeError("two\nlines")

    run.after_epoch = fail
    with pytest.raises(RuntimeError, match="two"):
        train_pipeline(small_model(), small_problem(), small_problem(10), settings, run)
    _, again = train_small(tmp_path, settings, resume=True)
    assert again.record.sessions[0]["ended_by"] == r"two\nlines"
    train_small(tmp_path, settings, resume=True)


@pytest.mark.parametrize("content", ["", "{", 100_000 * "[", '{"sessions": 3}'], ids=len)
def test_damaged_record_beside_a_good_state(tmp_path, content, capsys):
    """The state alone suffices, and the best checkpoint is restored from it."""
    settings = Settings(2, 5, 0.05, seed=3)
    model, run = train_small(tmp_path, settings)
    run.files.record.write_text(content)
    run.files.best_checkpoint.write_bytes(b"")
    again, _ = train_small(tmp_path, settings, resume=True)
    out = capsys.readouterr().out
    assert f"note        {run.files.record} is not a valid record of a run: " in out
    assert "resumed from the state alone\n" in out
    assert weights_sha256(again.state_dict()) == weights_sha256(model.state_dict())
    load_checkpoint(run.files.best_checkpoint)
    assert json.loads(run.files.record.read_text())["status"] == "finished"


def edited(content: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a state with one change that a digest cannot miss."""
    weights = content["weights"]
    (name, tensor), *_ = weights.items()
    tensor, lr = tensor + (number == 0), 0.05 + (number == 1)
    history = [{**row, "train_loss": 9.0} if number == 2 else row for row in content["history"]]
    return {
        **content,
        "weights": {**weights, name: tensor},
        "optimizer": {**content["optimizer"], "steps": torch.tensor(number == 3) + 1.0},
        "history": history,
        "metadata": {**content["metadata"], "settings": {"lr": lr}},
        "losses": torch.ones(int(number == 4)),
        "sessions": [{**content["sessions"][0], "command": "x"}] if number == 5 else [],
    }


@pytest.mark.parametrize("number", range(6))
def test_states_that_were_edited_are_refused(tmp_path, number):
    """Every part is in the digest; the file's own checksums are those of the edited content."""
    settings = Settings(2, 5, 0.05, seed=3)
    train_small(tmp_path, settings)
    path = tmp_path / "run_resume.pt"
    torch.save(edited(torch.load(path, weights_only=True), number), path)
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match=r"run_resume\.pt is damaged: it was changed; give"):
        train_small(tmp_path, settings, resume=True)
    assert files_of(tmp_path) == before


ROW = {"epoch": 1, **dict.fromkeys(COLUMNS[1:], 0.5)}
SECONDS = "epochs are not 1, 2, 3 …, or seconds are below 0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"losses": None}, "losses is 'None', expected Tensor"),
        ({"seconds": "x"}, "seconds is 'x', expected float"),
        ({"history": [{"epoch": 1}]}, r"history\[0\] lacks learning_rate"),
        ({"history": [dict.fromkeys(["epoch", *COLUMNS[1:], "x"], 1)]}, "history has other col"),
        ({"sessions": [3]}, r"sessions\[0\] is '3', expected an object"),
        ({"metadata": {"settings": {"lr": {1}}}}, "it holds .* of type set"),
        ({"metadata": {"settings": {"lr": 10**99}}}, "it holds an integer of more than 64 bits"),
        ({"weights": {}}, "Error.s. in loading state_dict"),
        ({"optimizer": {}}, "'steps'"),
        ({"losses": torch.ones(99)}, "an epoch has 5 steps"),
        ({"losses": torch.ones(())}, "losses .steps,. or weights are not finite numbers"),
        ({"losses": torch.ones(2, 2)}, "losses .steps,. or weights are not finite numbers"),
        ({"losses": torch.ones(2, dtype=torch.int64)}, "losses .steps,. or weights are not"),
        ({"losses": torch.full((2,), torch.nan)}, "losses .steps,. or weights are not finite"),
        ({"best_weights": {}}, "Error.s. in loading state_dict"),
        ({"best_weights": {"1.bias": torch.ones(9)}}, "Error.s. in loading state_dict"),
        ({"seconds": float("nan")}, "it holds nan"),
        ({"seconds": -1.0}, SECONDS),
        ({"history": [{**ROW, "seconds": -1.0}]}, SECONDS),
        ({"history": [{**ROW, "validation_loss": float("inf")}]}, "it holds inf"),
        ({"history": [{**ROW, "epoch": 2}]}, SECONDS),
    ],
    ids=str,
)
def test_states_with_odd_fields_are_refused(tmp_path, change, sentence):
    """Even where their digest is right."""
    settings = Settings(2, 5, 0.05, seed=3)
    train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    path = tmp_path / "run_resume.pt"
    state = torch.load(path, weights_only=True)
    if "metadata" in change:
        change = {"metadata": {**state["metadata"], **change["metadata"]}}
    if "of type set" in sentence:
        torch.save({**state, **change}, path)  # no digest is of sets
    else:
        write_state(path, cast(State, {**state, **change}))
    with pytest.raises(UsageError, match=f"run_resume.pt is damaged: {sentence}"):
        train_small(tmp_path, settings, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cut off, damaged or no PyTorch file"):
        train_small(tmp_path, settings, resume=True)
    state.pop("losses")
    torch.save(state, path)
    with pytest.raises(UsageError, match="is damaged: it lacks losses"):
        train_small(tmp_path, settings, resume=True)


def test_later_best_checkpoint_of_a_killed_run_is_replaced(tmp_path):
    settings = Settings(1, 5, 0.05, seed=3)
    _, run = train_small(tmp_path, settings)
    best = load_checkpoint(run.files.best_checkpoint)
    later = {name: tensor + 1 for name, tensor in best.weights.items()}
    write_checkpoint(run.files.best_checkpoint, later, {**best.metadata, "epoch": 2})
    run.files.record.unlink()
    train_small(tmp_path, settings, resume=True)
    again = load_checkpoint(run.files.best_checkpoint)
    assert again.metadata["epoch"] == 1
    assert weights_sha256(again.weights) == weights_sha256(best.weights)
