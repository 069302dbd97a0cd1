"""The progress bar on a terminal."""

import multiprocessing
import os
from pathlib import Path

import pytest
from small_runs import command


def command_on_terminal(processed: Path, folder: Path, terminal: str) -> None:
    os.dup2(os.open(terminal, os.O_RDWR | os.O_NOCTTY), 2)
    command(processed, folder, 2, 1000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_bar_on_a_terminal(processed, tmp_path):
    """A log has none: in the other tests the commands' stderr is empty."""
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
    assert "\n" not in shown, "the bar is erased, so that no line of the log is lost"
    os.close(controller)
    os.close(terminal)
