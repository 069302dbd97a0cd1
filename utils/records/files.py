"""Where files are, and how they are written: whole or not at all, and by one process."""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from utils.errors import UsageError

#: The repository root.
ROOT = Path(__file__).resolve().parents[2]


class FileRecord(TypedDict):
    """A file by its path relative to the repository, and the SHA-256 of its bytes."""

    file: str
    sha256: str


def candidate_paths(path: str | Path) -> list[Path]:
    """Return what ``path`` may mean: taken from the working directory, then from ``ROOT``."""
    return list(dict.fromkeys((Path.cwd() / path, ROOT / path)))


def _find(path: str | Path, flag: str, what: str, is_wanted: Callable[[Path], bool]) -> Path:
    if not str(path):
        raise UsageError(f"{flag} is empty; give an existing {what}")
    candidates = candidate_paths(path)
    for candidate in candidates:
        if is_wanted(candidate):
            if str(candidate).isprintable():
                return candidate.resolve()
            raise UsageError(
                f"{flag} {str(path)!r} has characters that cannot be printed; rename it"
            )
    tried = " and ".join(
        f"{candidate} ({'not a ' + what if candidate.exists() else 'does not exist'})"
        for candidate in candidates
    )
    missing = what == "folder" and not any(candidate.exists() for candidate in candidates)
    remedy = " (mkdir creates one)" if missing else ""
    raise UsageError(f"{flag} {str(path)!r} is no existing {what}; tried {tried}{remedy}")


def find_file(path: str | Path, flag: str) -> Path:
    """Return the absolute path of an existing file.

    :raises UsageError: it is in neither place; the sentence names ``flag`` and both places.
    """
    return _find(path, flag, "file", Path.is_file)


def find_folder(path: str | Path, flag: str) -> Path:
    """Return the absolute path of an existing folder; raises as :func:`find_file` does."""
    return _find(path, flag, "folder", Path.is_dir)


def find_path(path: str | Path, flag: str) -> Path:
    """Return the absolute path of a file or folder; raises as :func:`find_file` does."""
    return _find(path, flag, "file or folder", lambda path: path.is_file() or path.is_dir())


def require_distinct(paths: Sequence[Path], flag: str) -> None:
    """Check that no two files are equal.

    :raises UsageError: some are.
    """
    if len({sha256_of(path) for path in paths}) < len(paths):
        raise UsageError(f"{flag}: a network is given twice; give each once")


def place_file(path: str | Path, flag: str) -> Path:
    """Return the absolute path of a file to be written, in an existing folder.

    :raises UsageError: its folder is in neither place.
    """
    folder = find_folder(Path(path).parent, f"{flag} {str(path)!r}: the folder")
    if not Path(path).name or (folder / Path(path).name).is_dir():
        raise UsageError(f"{flag} {str(path)!r} is a folder; give the name of a file")
    return folder / Path(path).name


def relative_to_root(path: str | Path) -> str:
    """Return ``path`` as records name it: relative to the repository, never absolute."""
    try:
        return Path(os.path.relpath(path, ROOT)).as_posix()
    except ValueError:  # Windows: no relative path leads to another drive
        return Path(path).name


@contextmanager
def atomic_write(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Give a temporary path that is renamed to ``path`` when the block ends without an error.

    A reader sees the old file or the whole new one, whenever the machine dies.

    :raises FileExistsError: with ``exclusive``, where ``path`` exists by then: of any number of
        writers one wins.
    :raises OSError: such as a full disk; it names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with name_file_in_errors(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if exclusive:
                _link(temporary, path)
            else:
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, exclusive: bool = False) -> None:
    """Write ``text`` as UTF-8, whole or not at all; raises as :func:`atomic_write` does."""
    with atomic_write(path, exclusive=exclusive) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add ``path`` to errors of the system, such as a full disk, that name no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _link(temporary: Path, path: Path) -> None:
    """Rename, and fail where ``path`` exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as exFAT
        path.open("xb").close()
        temporary.replace(path)


@contextmanager
def file_lock(path: Path, refusal: UsageError | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; the system frees that of a process that dies.

    Without ``refusal`` wait for it, and leave the file, which others may have opened.

    :raises UsageError: ``refusal``, where another process holds it.
    """
    from filelock import FileLock, Timeout  # not for --help

    with suppress(FileNotFoundError):
        found = path.lstat()
        # Earlier versions of filelock follow links, and empty what they open.
        if found.st_size or not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path} is in the way of a lock file; remove it")
    lock = FileLock(path, blocking=refusal is None)
    try:
        lock.acquire(poll_interval=0.01)
    except Timeout:
        assert refusal is not None, "a lock that is waited for has no timeout"
        raise refusal from None
    try:
        yield
    finally:
        # Before it is freed, or another process would lock a file that is about to go.
        if refusal is not None:
            with suppress(OSError):  # Windows does not remove an open file
                path.unlink()
        lock.release()


@contextmanager
def exclusive_output(path: Path, taken: UsageError, endings: str) -> Iterator[None]:
    """Write the files of a name in the block, ``path`` as the last of them and exclusively.

    So ``path`` shows that the others are there and whole; what a killed process left of them is
    written again, or removed. ``endings`` is as for :func:`remove_temporary`.

    :raises UsageError: ``taken``, where ``path`` exists or another process is writing it.
    """
    with file_lock(path.with_name(f".{path.name}.lock"), taken):
        if path.exists():
            raise taken
        remove_temporary(path.parent, path.name.rpartition("_")[0], endings)
        try:
            yield
        except FileExistsError:
            raise taken from None


def remove_temporary(folder: Path, exp_name: str, endings: str) -> None:
    """Remove what a killed process left half written of a name; its lock is held.

    :param endings: a regular expression for the endings of its files, after ``{exp_name}_``.
    """
    name = re.compile(re.escape(f".{exp_name}_") + rf"({endings})\.[0-9a-f]{{8}}\.tmp")
    for path in folder.iterdir():
        if name.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
