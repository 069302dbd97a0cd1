"""Raw files as their publishers made them: verified before use, fetched where they are missing."""

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


def fetch(
    folder: Path,
    expected: Mapping[str, str],
    sources: Mapping[str, Callable[[Path], None]],
    remedy: str,
    algorithm: str = "sha256",
) -> None:
    """Have ``folder`` hold the ``expected`` files, from the first of the ``sources`` that has them.

    A source is called with an empty folder to put the files in. They are verified there, then
    renamed into place one by one, so that any number of processes may do this at once.

    :raises RunError: no source has them; the sentence gives every reason, then the ``remedy``.
    """
    wrong = wrong_files(folder, expected, algorithm)
    if not wrong:
        return
    reasons = [f"{folder}: {', '.join(wrong)}"]
    print(reasons[0], flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for source, copy_into in sources.items():
        print(f"trying {source}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            private = Path(temporary)
            try:
                with _impatient():
                    copy_into(private)
                wrong = wrong_files(private, expected, algorithm)
            except Exception as error:  # whatever ails this source, there may be another
                wrong = [" ".join(str(error).split()) or repr(error)]
            if not wrong:
                for name in expected:
                    (private / name).replace(folder / name)
                return
        reasons.append(f"{source}: {', '.join(wrong)}")
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
