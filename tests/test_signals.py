"""Signals that stop a run."""

import json
import os
import signal
from typing import Any

import processes
import pytest
import torch
from conftest import clean_environment, write_datasets
from small_runs import FLAGS, outcome

from utils.engine.signals import stop_request


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_signals_through_the_command_line(checkout):
    """Each signal ends the run after the step, with its state saved, one line and its status."""
    write_datasets(checkout / "data" / "processed")
    script = checkout / "DJSW" / "main.py"
    options: dict[str, Any] = {"cwd": checkout, "env": clean_environment()}
    expected = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
    running = {}
    for name in expected:
        (checkout / "reports" / name).mkdir()
        flags = ["2000", "--exp_name", "e", "--output_dir", f"reports/{name}"]
        running[name] = processes.start([script, *FLAGS, *flags], **options)
    done = {}
    for name, process in running.items():
        assert process.stdout is not None and process.stderr is not None
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

    # resumed to the same epoch, all three have the same results
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
    handlers = [signal.getsignal(getattr(signal, name)) for name in order]
    with stop_request.watch():
        for name in order:
            os.kill(os.getpid(), getattr(signal, name))
        with stop_request.watch():  # inside another block, nothing changes
            assert stop_request.signal == order[0]
    assert [signal.getsignal(getattr(signal, name)) for name in order] == handlers
    with stop_request.watch():
        assert stop_request.signal is None


def test_second_interrupt_stops_at_once():
    with stop_request.watch():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_request.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
