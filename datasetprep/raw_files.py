"""Raw files as published: verified before use, downloaded where they are missing."""

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.errors import RunError

#: Seconds to wait for a server that does not answer.
TIMEOUT = 20


@dataclass(frozen=True)
class Source:
    """A source of raw files.

    :ivar name: its name in messages.
    :ivar hashes: file name -> hexadecimal hash.
    :ivar copy_into: writes the files into an empty folder; None for files that only the user can
        provide.
    :ivar algorithm: a hash algorithm of :mod:`hashlib`.
    """

    name: str
    hashes: Mapping[str, str]
    copy_into: Callable[[Path], None] | None = None
    algorithm: str = "sha256"

    def errors(self, folder: Path) -> list[str]:
        """Return one message for each file that is missing from ``folder`` or is altered."""
        errors = []
        for name, expected in self.hashes.items():
            path = folder / name
            if not path.is_file():
                errors.append(f"{name} is missing")
                continue
            with path.open("rb") as file:
                found = hashlib.file_digest(file, self.algorithm).hexdigest()
            if found != expected:
                algorithm = self.algorithm.upper()
                errors.append(f"{name} has the {algorithm} {found}, expected {expected}")
        return errors


def fetch(folder: Path, sources: Sequence[Source], remedy: str) -> Source:
    """Return the first source whose files are in ``folder``, else copy them there from one.

    Files are verified in a temporary folder, then renamed into place one by one, so that several
    processes may fetch the same files at once.

    :raises RunError: no source has the files; the message gives every reason and the ``remedy``.
    """
    errors: dict[str, None] = {}  # without repetitions, in order
    for source in sources:
        missing = source.errors(folder)
        if not missing:
            return source
        errors |= dict.fromkeys(missing)
    reasons = [f"{folder}: {', '.join(errors)}"]
    print(reasons[0], flush=True)
    for source in sources:
        if source.copy_into is None:
            continue
        print(f"trying {source.name}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            copied = Path(temporary)
            try:
                with _socket_timeout():
                    source.copy_into(copied)
                failed = source.errors(copied)
            except Exception as error:  # whatever fails here, the next source may work
                failed = [" ".join(str(error).split()) or repr(error)]
            if not failed:
                for name in source.hashes:
                    (copied / name).replace(folder / name)
                return source
        reasons.append(f"{source.name}: {', '.join(failed)}")
        print(reasons[-1], flush=True)
    raise RunError(f"{'; '.join(reasons)} ({remedy})")


@contextmanager
def _socket_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
