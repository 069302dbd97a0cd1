"""Raw files as their publishers made them: verified before use, fetched where they are missing."""

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.failures import RunError

#: A server that stays silent is given up after this many seconds.
TIMEOUT = 20


def wrong_files(folder: Path, expected: Mapping[str, str], algorithm: str = "sha256") -> list[str]:
    """What is wrong with the files ``expected`` (name -> hexadecimal hash) of ``folder``."""
    wrong = []
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != wanted:
            wrong.append(f"{name} has the {algorithm.upper()} {found}, expected {wanted}")
    return wrong


@dataclass(frozen=True)
class Source:
    """Where raw files come from.

    :ivar name: as messages name it.
    :ivar files: name -> hexadecimal hash of each file.
    :ivar copy_into: puts the files into the empty folder that it is given; None for files that
        only a user can put there.
    :ivar algorithm: of the hashes, a name of :mod:`hashlib`.
    """

    name: str
    files: Mapping[str, str]
    copy_into: Callable[[Path], None] | None = None
    algorithm: str = "sha256"


def fetch(folder: Path, sources: Sequence[Source], remedy: str) -> Source:
    """Return the first of the ``sources`` whose files are in ``folder``; else fetch them.

    Files are verified in a folder of their own, then renamed into place one by one, so that any
    number of processes may do this at once.

    :raises RunError: no source has them; the sentence gives every reason, then the ``remedy``.
    """
    reasons = []
    for source in sources:
        wrong = wrong_files(folder, source.files, source.algorithm)
        if not wrong:
            return source
        reasons += [reason for reason in wrong if reason not in reasons]
    reasons = [f"{folder}: {', '.join(reasons)}"]
    print(reasons[0], flush=True)
    for source in sources:
        if source.copy_into is None:
            continue
        print(f"trying {source.name}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            private = Path(temporary)
            try:
                with _impatient():
                    source.copy_into(private)
                wrong = wrong_files(private, source.files, source.algorithm)
            except Exception as error:  # whatever ails this source, there may be another
                wrong = [" ".join(str(error).split()) or repr(error)]
            if not wrong:
                for name in source.files:
                    (private / name).replace(folder / name)
                return source
        reasons.append(f"{source.name}: {', '.join(wrong)}")
        print(reasons[-1], flush=True)
    raise RunError(f"{'; '.join(reasons)}. {remedy}")


@contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
