"""Scripts in separate processes, which start in milliseconds instead of seconds.

They are forked from a server that has loaded the libraries (importing torch takes two seconds);
the project's own modules are loaded from the script's checkout, as in any other process.
"""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("DJSW", "models", "datasetprep", "utils")
#: Loaded by the server.
LIBRARIES = [
    "h5py",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.stats",
    "sklearn.metrics",
    "tensorboard.summary.writer.event_file_writer",
    "torch.distributed",
    "torchvision.datasets",
    "tqdm",
]
CAN_FORK = sys.platform == "linux"
if CAN_FORK:
    _server = multiprocessing.get_context("forkserver")
    _server.set_forkserver_preload(LIBRARIES)

#: Stands in for ``uv run`` in a shell: asks the test's process to run the script, and waits.
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = {"command": sys.argv[2:], "cwd": os.getcwd(), "env": dict(os.environ)}
    socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(100)))
"""


class Script:
    """A running script, with the part of ``subprocess.Popen``'s interface that the tests need."""

    def __init__(
        self,
        command: Sequence[object],
        *,
        env: Mapping[str, str],
        cwd: str | Path | None = None,
        output: Sequence[int] | None = None,
    ) -> None:
        """Start ``command``: the script and its arguments.

        :param output: file descriptors for stdout and stderr instead of pipes.
        """
        pipes = [] if output else [os.pipe(), os.pipe()]
        targets = output or [write for _, write in pipes]
        words = list(map(str, command))
        arguments = (words, str(cwd or Path.cwd()), dict(env), *map(_Descriptor, targets))
        self._process = _server.Process(target=_run, args=arguments)
        self._process.start()
        for _, write in pipes:
            os.close(write)
        self.stdout: TextIO | None = None
        self.stderr: TextIO | None = None
        if pipes:
            self.stdout, self.stderr = (open(read, encoding="utf-8") for read, _ in pipes)
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the number of the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None while the script runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None, "started by the constructor"
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"the script did not end within {timeout} s")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return the output on stdout and on stderr."""
        written = ["", ""]

        def read(number: int) -> None:
            stream = (self.stdout, self.stderr)[number]
            assert stream is not None, "the output goes to other files"
            with stream:
                written[number] = stream.read()

        readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        finally:
            for reader in readers:
                reader.join()
        return written[0], written[1]


class _Descriptor:
    """A file descriptor that is passed to the new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return _inherited, (reduction.DupFd(self.number),)


def _inherited(duplicate) -> int:
    return duplicate.detach()


def _run(command: list[str], cwd: str, env: dict[str, str], stdout: int, stderr: int) -> None:
    """Run the script; called in the new process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for number in (stdout, stderr):
        os.close(number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.argv = command
    script = Path(command[0]).resolve()
    tests = Path(__file__).resolve().parent
    sys.path[:] = [str(script.parent), *(p for p in sys.path if not _is_ours(p, tests))]
    runpy.run_path(command[0], run_name="__main__")


def _is_ours(entry: str, tests: Path) -> bool:
    return Path(entry).resolve() in (tests, tests.parent)


def start(command: Sequence[object], **options: Any) -> "Script | subprocess.Popen[str]":
    """Start a script; its output goes to pipes."""
    if CAN_FORK:
        return Script(command, **options)
    words, pipe = [sys.executable, *map(str, command)], subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, **options)


@contextmanager
def serving() -> Iterator[list[str]]:
    """Run the scripts that a shell requests; yield the prefix of their command lines."""
    if not CAN_FORK:
        yield [sys.executable]
        return
    with (
        # The path of a socket has at most 107 characters.
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        client, address = Path(folder, "client.py"), str(Path(folder, "socket"))
        client.write_text(CLIENT)
        listener.bind(address)
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield [sys.executable, "-IS", str(client), address]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the listener was closed
            return
        with connection:
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
            while more := connection.recv(1 << 20):
                request += more
            script = Script(**json.loads(request), output=descriptors)
            for number in descriptors:
                os.close(number)
            connection.sendall(str(script.wait(300)).encode())
