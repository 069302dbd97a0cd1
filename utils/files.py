"""Where files are, and how they are written: whole or not at all."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.failures import UsageError

_checkout = Path(__file__).resolve().parents[1]
#: The repository root; the working directory where the packages were installed without one.
ROOT = _checkout if (_checkout / "pyproject.toml").is_file() else Path.cwd()


def places(path: str | Path) -> list[Path]:
    """The absolute paths that ``path`` may mean: from the working directory, else from ``ROOT``."""
    return list(dict.fromkeys((Path.cwd() / path, ROOT / path)))


def _find(path: str | Path, flag: str, what: str, is_wanted: Callable[[Path], bool]) -> Path:
    if not str(path):
        raise UsageError(f"{flag} is empty; give an existing {what}")
    for place in places(path):
        if is_wanted(place):
            return place.resolve()
    looked = " and ".join(
        f"{place} ({'not a ' + what if place.exists() else 'does not exist'})"
        for place in places(path)
    )
    raise UsageError(f"{flag} {str(path)!r} is no existing {what}; looked in {looked}")


def find_file(path: str | Path, flag: str) -> Path:
    """The absolute path of an existing file.

    :raises UsageError: it is in neither place; the sentence names ``flag`` and both places.
    """
    return _find(path, flag, "file", Path.is_file)


def find_folder(path: str | Path, flag: str) -> Path:
    """The absolute path of an existing folder; raises as :func:`find_file` does."""
    return _find(path, flag, "folder", Path.is_dir)


def find_path(path: str | Path, flag: str) -> Path:
    """The absolute path of an existing file or folder; raises as :func:`find_file` does."""
    return _find(path, flag, "file or folder", Path.exists)


def place_file(path: str | Path, flag: str) -> Path:
    """The absolute path of a file to be written, in an existing folder.

    :raises UsageError: its folder is in neither place.
    """
    folder = find_folder(Path(path).parent, f"{flag} {str(path)!r}: the folder")
    if not Path(path).name or (folder / Path(path).name).is_dir():
        raise UsageError(f"{flag} {str(path)!r} is a folder; give the name of a file")
    return folder / Path(path).name


def recorded(path: str | Path) -> str:
    """``path`` as a record names it: relative to the repository, never absolute."""
    try:
        return Path(os.path.relpath(path, ROOT)).as_posix()
    except ValueError:  # Windows: no relative path leads to another drive
        return Path(path).name


def printable(path: Path) -> str:
    """A path for people and tables; what cannot be seen, or is no character, is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(path)
    )


@contextmanager
def writing(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` once the block ends without error.

    A reader sees the old file or the whole new one, at whatever line the machine dies.

    :raises FileExistsError: with ``exclusive``, where ``path`` exists by then: of any number of
        writers one wins.
    :raises OSError: the disk is full, say; it names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if exclusive:
                _link(temporary, path)
            else:
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system, such as a full disk, name ``path`` where they name no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _link(temporary: Path, path: Path) -> None:
    """Rename that fails where ``path`` exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as exFAT
        path.open("xb").close()
        temporary.replace(path)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
