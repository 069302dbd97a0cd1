"""Adam and the gradients against torch's; runs that are killed, stopped and resumed."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from conftest import clean_environment, write_datasets
from torch import nn
from torch.nn import functional as F

from DJSW import pipelines, train
from DJSW.main import main
from DJSW.pipelines import PEOPLE, build_model
from utils.adam import Adam
from utils.checkpoint import load_checkpoint, weights_sha256
from utils.gradients import AutogradGradients, StackGradients, gradients_of
from utils.signals import stop_request


def parameters_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("username", PEOPLE)
def test_adam_takes_the_steps_of_torch(username):
    (ours, _), (theirs, _) = (build_model(username, PEOPLE[username].dataset) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    adam = Adam(ours, lr=0.01)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad.copy_(torch.randn(mine.shape, generator=generator))
            other.grad = mine.grad.clone()
        adam.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_adam_goes_on_from_its_state():
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (Adam(model, lr=0.1) for model in models)
    first.gradients.fill_(0.5)
    first.step()
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    for adam in (first, second):
        adam.gradients.fill_(-0.3)
        adam.step()
    assert torch.equal(first.values, second.values)


@pytest.mark.parametrize("batch", [64, 1])
@pytest.mark.parametrize("username", PEOPLE)
def test_gradients_equal_float64_autograd(username, batch):
    torch.manual_seed(0)
    dataset = pipelines.DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(username, PEOPLE[username].dataset)
    images = torch.rand(batch, 1, *dataset.image_size)
    classes = torch.randint(len(dataset.digits), (batch,))
    Adam(model, lr=0.1)
    double, _ = build_model(username, PEOPLE[username].dataset)
    double.double().load_state_dict(model.state_dict())
    model.eval(), double.eval()  # a network's own draws, such as dropout's, would differ
    expected = F.cross_entropy(double(images.double()), classes)
    expected.backward()
    for gradients in (gradients_of(model), AutogradGradients(model)):
        for _ in range(2):  # the second time, what was there is overwritten
            loss_sum = gradients(images, classes)
        assert loss_sum.item() / batch == pytest.approx(expected.item(), rel=1e-5)
        for mine, other in zip(model.parameters(), double.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-7)


def test_networks_that_are_no_stack_are_left_to_autograd():
    model, _ = build_model("sigurd", "mnist_4_9")
    with pytest.raises(AssertionError, match="build the optimizer first"):
        gradients_of(model)
    Adam(model, lr=0.1)
    assert isinstance(gradients_of(model), StackGradients)
    assert isinstance(gradients_of(nn.Linear(2, 2)), AutogradGradients)


FLAGS = ["--username", "waly", "--train", "--batch_size", "8", "--num_epochs"]


def command(processed: Path, folder: Path, epochs: int, save_seconds: float) -> None:
    """A training in a process of its own, which saves its state every so often."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pipelines.PROCESSED, train.SAVE_SECONDS = processed, save_seconds
    argv = [*FLAGS, str(epochs), "--exp_name", "e", "--output_dir", str(folder), "--resume"]
    sys.exit(main(argv))


def outcome(folder: Path) -> dict[str, object]:
    """All that must not depend on how often a training was stopped."""
    checkpoints = sorted(folder.glob("*_checkpoint_*.pt"))
    history = (folder / "e_history.csv").read_text().splitlines()
    return {
        **{path.name: weights_sha256(load_checkpoint(path).weights) for path in checkpoints},
        "history": [line.rpartition(",")[0] for line in history],  # without the seconds
        "best": load_checkpoint(folder / "e_checkpoint_best.pt").about["epoch"],
        "files": sorted(path.name for path in folder.iterdir()),
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_storm(processed, tmp_path, kills):
    """Killed at random moments until it finishes, it ends as if it had never been disturbed."""
    epochs, context = 12 * kills, multiprocessing.get_context("forkserver")
    folders = {name: tmp_path / name for name in ("calm", "storm")}
    for folder in folders.values():
        folder.mkdir()
    moments, killed, steps = random.Random(0), 0, set()
    state = folders["storm"] / "e_resume.pt"
    while killed < kills:
        child = context.Process(target=command, args=(processed, folders["storm"], epochs, 0.001))
        before = state.stat().st_mtime_ns if state.exists() else 0
        child.start()
        if killed % 4:  # killed when it has saved a state, else wherever its start is
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
    assert killed == kills, "the training was over before the storm was"
    assert len(steps) > kills / 3, "it was killed at different places"
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


def command_on_terminal(processed: Path, folder: Path, terminal: str) -> None:
    os.dup2(os.open(terminal, os.O_RDWR | os.O_NOCTTY), 2)
    command(processed, folder, 2, 1000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_bar_on_a_terminal(processed, tmp_path):
    """In a log there is none: the commands' stderr is empty in the other tests."""
    import fcntl
    import struct
    import termios

    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    (tmp_path / "out").mkdir()
    child = multiprocessing.get_context("forkserver").Process(
        target=command_on_terminal, args=(processed, tmp_path / "out", os.ttyname(terminal))
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    shown = os.read(controller, 100_000).decode()
    assert "epoch 1:   0%" in shown
    assert "epoch 2:   0%" in shown
    assert "\n" not in shown, "the bar goes away, so that the lines stay together"
    os.close(controller)
    os.close(terminal)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_signals_through_the_command_line(checkout):
    """Each signal: the step is finished, the state saved, one line said, the status as agreed."""
    write_datasets(checkout / "data" / "processed")
    script = checkout / "DJSW" / "main.py"
    options = {"cwd": checkout, "env": clean_environment()}
    expected = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
    running = {}
    for name in expected:
        (checkout / "reports" / name).mkdir()
        flags = ["2000", "--exp_name", "e", "--output_dir", f"reports/{name}"]
        running[name] = processes.start([script, *FLAGS, *flags], **options)
    done = {}
    for name, process in running.items():
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
        assert process.returncode == expected[name]
        assert error.startswith(f"stopped by {name} in epoch ")
        assert error.count("\n") == 1
        record = json.loads((checkout / "reports" / name / "e_run.json").read_text())
        assert (record["status"], record["reason"]) == ("stopped", name)
        state = torch.load(checkout / "reports" / name / "e_resume.pt", weights_only=True)
        assert f"epoch {len(state['history']) + 1} after {len(state['losses'])} steps" in error
        done[name] = len(state["history"])
        assert not list((checkout / "reports" / name).glob(".*"))

    # resumed to the same epoch, all three are the same training
    epochs = str(max(done.values()) + 1)
    resumed = []
    for name in expected:
        flags = [epochs, "--exp_name", "e", "--output_dir", f"reports/{name}", "--resume"]
        resumed.append(processes.start([script, *FLAGS, *flags], **options))
    for process in resumed:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "resumed" in out
    outcomes = [outcome(checkout / "reports" / name) for name in expected]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("order", [("SIGUSR1", "SIGTERM", "SIGINT"), ("SIGTERM", "SIGUSR1")])
def test_the_first_signal_counts(order):
    stop_request.watch()
    for name in order:
        os.kill(os.getpid(), getattr(signal, name))
    assert stop_request.signal == order[0]


def test_second_interrupt_stops_at_once():
    stop_request.watch()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop_request.signal == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_patience(processed, tmp_path, capsys):
    flags = ["--username", "waly", "--train", "--lr", "0.3", "--output_dir", str(tmp_path)]
    assert main([*flags, "--num_epochs", "50", "--patience", "3", "--exp_name", "a"]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "a_run.json").read_text())
    best, last = record["results"]["best"], record["results"]["last"]
    assert last["epoch"] == best["epoch"] + 3 < 50
    assert "no better validation loss for 3 epochs" in out
    assert (tmp_path / f"a_checkpoint_epoch_{last['epoch']}.pt").exists()
    # as it would have been without
    assert main([*flags, "--num_epochs", str(last["epoch"]), "--exp_name", "b"]) == 0
    again = json.loads((tmp_path / "b_run.json").read_text())
    assert again["results"]["last"]["weights_sha256"] == last["weights_sha256"]
    more = ["--num_epochs", "60", "--exp_name", "a", "--resume"]
    assert main([*flags, *more]) == 2
    assert "settings.patience 3, not None" in capsys.readouterr().err


def test_events_are_those_of_the_history(processed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--username", "waly", "--train", "--exp_name", "e", "--output_dir", str(tmp_path)]
    for epochs in ("2", "4"):
        assert main([*flags, "--num_epochs", epochs, "--resume"]) == 0
    events = EventAccumulator(str(tmp_path / "e_tensorboard"))
    events.Reload()
    rows = (tmp_path / "e_history.csv").read_text().splitlines()
    for column, name in enumerate(rows[0].split(",")[1:], start=1):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [float(row.split(",")[column]) for row in rows[1:]]
        assert found == [(n, pytest.approx(v, rel=1e-6)) for n, v in enumerate(expected, 1)]


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
    load_checkpoint(tmp_path / "full" / "e_checkpoint_best.pt")  # the earlier one, whole
    monkeypatch.undo()
    monkeypatch.setattr(pipelines, "PROCESSED", processed)
    assert main(full) == 0
    assert outcome(tmp_path / "full") == outcome(tmp_path / "calm")
