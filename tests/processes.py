"""Scripts in processes of their own, which start in milliseconds instead of seconds.

They are forked from a server that has loaded the libraries (importing torch takes two seconds);
the project's own modules are loaded from the script's checkout, as for any other process.
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

#: What ``uv run`` becomes in a shell: asks the test's process to run the script, and waits.
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
    """A running script, with what the tests need of the interface of ``subprocess.Popen``."""

    def __init__(
        self,
        command: Sequence[object],
        *,
        env: Mapping[str, str],
        cwd: str | Path | None = None,
        output: tuple[int, int] | None = None,
    ) -> None:
        """Start ``command``: the script and its arguments.

        :param output: file descriptors for stdout and stderr instead of pipes.
        """
        pipes = [] if output else [os.pipe(), os.pipe()]
        targets = output or tuple(write for _, write in pipes)
        words = list(map(str, command))
        arguments = (words, str(cwd or Path.cwd()), dict(env), *map(_Descriptor, targets))
        self._process = _server.Process(target=_run, args=arguments)
        self._process.start()
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr = (
            (open(read, encoding="utf-8") for read, _ in pipes) if pipes else (None, None)
        )
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def returncode(self) -> int | None:
        """The exit status; minus the signal that killed it; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"the script did not end within {timeout} s")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; returns what it wrote to stdout and to stderr."""
        written = ["", ""]

        def read(number: int) -> None:
            with (self.stdout, self.stderr)[number] as stream:
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
    """A file descriptor that is handed to the new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return _inherited, (reduction.DupFd(self.number),)


def _inherited(duplicate) -> int:
    return duplicate.detach()


def _run(command: list[str], cwd: str, env: dict[str, str], stdout: int, stderr: int) -> None:
    """In the new process."""
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


def start(command: Sequence[object], **options) -> "Script | subprocess.Popen[str]":
    """Start a script; its output goes to pipes."""
    if CAN_FORK:
        return Script(command, **options)
    command = [sys.executable, *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


@contextmanager
def serving() -> Iterator[list[str]]:
    """Run the scripts that a shell asks for; gives the command to put before a script's."""
    if not CAN_FORK:
        yield [sys.executable]
        return
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,  # a socket's path has 107 characters
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
            script = Script(**json.loads(request), output=tuple(descriptors))
            for number in descriptors:
                os.close(number)
            connection.sendall(str(script.wait(300)).encode())
