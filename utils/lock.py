"""One process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.failures import UsageError


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the time of the block.

    The system frees the lock of a process that dies, whichever way. Where there are no locks
    (Windows, some network file systems) nothing is held.

    :raises UsageError: another process has it; with the sentence ``refusal``.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(refusal) from None
        except OSError:
            pass
        # Opened just before another process removed it, the file is no longer the lock.
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise UsageError(refusal)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path, taken: UsageError) -> Iterator[None]:
    """Make the files of a name in the block, ``path`` as the last of them and exclusively.

    So ``path`` says that the others are there and whole; what a process that died left of them is
    written anew.

    :raises UsageError: ``taken``, where ``path`` is there already or another process is making it.
    """
    with locked(path.with_name(f".{path.name}.lock"), str(taken)):
        if path.exists():
            raise taken
        try:
            yield
        except FileExistsError:
            raise taken from None
