"""Raw files as published: verified before use, downloaded where they are missing."""

import gzip
import hashlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import MissingData

TIMEOUT = 20  # seconds to wait for a server that does not answer
LIMIT = 2**26  # bytes of a raw file; the largest has 47 million, SVHN's aside


def read(path: Path, opener: Callable[[Path, str], Any] = open, limit: int = LIMIT) -> bytes:
    """Return a raw file's bytes; of one above ``limit`` a part, which has another hash."""
    with opener(path, "rb") as file:
        return bytes(file.read(limit))


def copy_given(given: Path, names: Iterable[str], folder: Path) -> None:
    """Copy the named files, where ``given`` has them, plain or gzipped, into ``folder``, plain."""
    for name in names:
        plain, gzipped = given / name, given / f"{name}.gz"
        if plain.is_file():
            (folder / name).write_bytes(read(plain))
        elif gzipped.is_file():
            (folder / name).write_bytes(read(gzipped, gzip.open))


def remove_old(folder: Path, pattern: str) -> None:
    """Remove what killed processes left in ``folder``: files and folders older than an hour."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process removed it
            if time.time() - path.stat().st_mtime > 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class Source:
    """A source of raw files.

    :ivar hashes: file name -> hexadecimal hash.
    :ivar copy_into: writes the files into an empty folder; None if only the user has them.
    :ivar algorithm: a hash algorithm of :mod:`hashlib`.
    :ivar limit: bytes of its largest file at most.
    """

    name: str
    hashes: Mapping[str, str]
    copy_into: Callable[[Path], object] | None = None
    algorithm: str = "SHA256"
    limit: int = LIMIT

    def errors(self, folder: Path) -> list[str]:
        """Return one message for each file that is missing from ``folder`` or is altered."""
        errors = []
        for name, expected in self.hashes.items():
            if not (folder / name).is_file():
                errors.append(f"{name} is missing")
                continue
            content = read(folder / name, limit=self.limit)
            found = hashlib.new(self.algorithm, content).hexdigest()
            if found != expected:
                errors.append(f"{name} has the {self.algorithm} {found}, expected {expected}")
        return errors


def fetch(folder: Path, sources: Sequence[Source], remedy: str) -> Source:
    """Return the first source whose files are in ``folder``, else copy them there from one.

    Files are verified in a temporary folder, then renamed into place one by one, so that several
    processes may fetch the same files at once.

    :raises MissingData: no source has the files; the message gives every reason and the ``remedy``.
    """
    errors: dict[str, None] = {}  # without repetitions, in order
    for source in sources:
        missing = source.errors(folder)
        if not missing:
            return source
        errors |= dict.fromkeys(missing)
    reason = f"{folder}: {', '.join(errors)}"
    print(reason, flush=True)
    remove_old(folder, ".fetching-*")
    for source in sources:
        if source.copy_into is None:
            continue
        print(f"trying {source.name}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            copied, timeout = Path(temporary), socket.getdefaulttimeout()
            socket.setdefaulttimeout(TIMEOUT)
            try:
                source.copy_into(copied)
                failed = source.errors(copied)
            except Exception as error:  # whatever fails here, the next source may work
                failed = [" ".join(str(error).split()) or repr(error)]
            finally:
                socket.setdefaulttimeout(timeout)
            if not failed:
                for name in source.hashes:
                    (copied / name).replace(folder / name)
                return source
        reason = f"{folder} lacks them, and no source has them (see above)"
        print(f"{source.name}: {', '.join(failed)}", flush=True)
    raise MissingData(f"{reason}; {remedy}")
