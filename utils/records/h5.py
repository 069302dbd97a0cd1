"""HDF5 files of images: written so that they can be checked, and read, without HDF5's library.

A file begins with 4096 bytes that HDF5 skips: the line ``DJSW sha256 HEX``, the hash of all bytes
after it, and a header in JSON: the root attributes, and type, shape and offset of each array. Some
damaged files crash the library, or make it compute or allocate without end. So files without that
line are converted to this form in a process of its own (``python h5.py FILE``, 0.3 s), whose output
is the file, or a sentence on stderr.
"""

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

#: Largest file, and array unpacked, in bytes: 340 000 images of 28 x 28 pixels.
LIMIT = 2**28
MARK = b"DJSW sha256 "
HEADER_SIZE = 4096
#: The arrays; a file may lack the last two.
ARRAYS = ("images", "labels", "writers", "series")
#: The root attributes; ``raw_sha256`` is JSON, from file to hash.
ATTRIBUTES = {
    **{"schema_version": int, "dataset": str, "split": str, "kept_labels": list, "source": str},
    **{"raw_sha256": str, "images_sha256": str, "labels_sha256": str},
    **{"tool": str, "tool_version": str},
}
#: Those of a file that says who wrote its digits.
OPTIONAL = {"writers_sha256": str, "series_sha256": str}


def array_hashes(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return ``{name}_sha256`` of each array, of its bytes in row-major order."""
    return {
        f"{name}_sha256": hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        for name, array in arrays.items()
    }


def h5_bytes(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file, the same for the same images and attributes.

    :param arrays: by the names of :data:`ARRAYS`, in that order.

    :raises ValueError: the arrays or the attributes are too large.
    """
    import h5py

    size = sum(array.nbytes for array in arrays.values())
    if size > LIMIT - 2 * HEADER_SIZE:
        raise ValueError(f"{len(arrays['labels'])} images take {size} bytes, more than {LIMIT}")
    buffer, found = io.BytesIO(), []
    with h5py.File(buffer, "w", userblock_size=HEADER_SIZE) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            offset = file.create_dataset(name, data=array).id.get_offset()
            found.append((array.dtype.str, array.shape, offset or 0))
    header = json.dumps({"attributes": attributes, "arrays": found}).encode()
    start = len(MARK) + 64 + 1
    if start + len(header) > HEADER_SIZE:
        raise ValueError(f"its attributes take more than {HEADER_SIZE - start} bytes")
    buffer.seek(start)
    buffer.write(header.ljust(HEADER_SIZE - start))
    with buffer.getbuffer() as content, content[start:] as rest:
        digest = hashlib.sha256(rest).hexdigest()
    buffer.seek(0)
    buffer.write(MARK + digest.encode() + b"\n")
    return buffer.getvalue()


def read_h5(
    path: Path, *, by_library: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the attributes and :data:`ARRAYS`: of files of ours, as a memory map.

    :param by_library: read any file with HDF5's library.
    :raises ValueError: the file is damaged, too large, not stored in itself, or of something else.
    """
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path.stat().st_size} bytes, more than {LIMIT}")
    content: np.ndarray = np.memmap(path, np.uint8, "r")
    marked = bytes(content[: len(MARK)]) == MARK
    if by_library or not marked:
        content = _converted(path)
    line, _, header = bytes(content[:HEADER_SIZE]).partition(b"\n")
    if line != MARK + hashlib.sha256(content[len(line) + 1 :].data).hexdigest().encode():
        raise ValueError("damaged, its SHA-256 is not that of its first line")
    attributes, arrays = _parse(header, content)
    if attributes.get("schema_version", 1) > 1 and not marked:
        raise ValueError("damaged, its first line is not ours")
    return attributes, arrays


def _parse(header: bytes, content: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a header describes, checked: that of a hostile file has the right hash too."""
    try:
        fields = json.loads(header)
        count = 4 if len(fields["arrays"]) == 4 else 2
        arrays = {
            name: np.frombuffer(content, kind, math.prod(shape), offset).reshape(shape)
            for name, (kind, shape, offset) in zip(ARRAYS[:count], fields["arrays"], strict=True)
        }
        attributes = fields["attributes"]
        for name, value in attributes.items():
            if not (isinstance(value, (ATTRIBUTES | OPTIONAL)[name]) and str(value).isprintable()):
                raise ValueError(f"attribute {name} is {str(value)[:50]!a}")
    except (TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its header is damaged: {str(error)[:100]}") from None
    images = arrays["images"]
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        shapes = "(N, H, W) or (N, H, W, 3)"
        raise ValueError(f"images {images.dtype} {images.shape}, expected uint8 {shapes}")
    for name in ARRAYS[1:count]:
        array = arrays[name]
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ValueError(f"{name} {array.dtype} {array.shape}, expected integers (N,)")
        if len(images) != len(array):
            raise ValueError(f"{len(images)} images but {len(array)} {name}")
    if images.size == 0:
        raise ValueError("no images")
    return attributes, arrays


def _converted(path: Path) -> np.ndarray:
    """Return the bytes of a file in our form, made in another process; raises as `read_h5` does."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each reserves memory
    try:
        with _signals_blocked():
            ran = subprocess.run(
                [sys.executable, "-P", __file__, path],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=os.environ | one_thread,
                timeout=10,
                start_new_session=True,  # Ctrl-C is for this process
            )
    except subprocess.TimeoutExpired:
        raise ValueError("the HDF5 library takes more than 10 s to read it") from None
    if ran.returncode == 1:
        raise ValueError(ran.stderr.decode(errors="replace").strip().split("\n")[-1][:200])
    if ran.returncode:
        raise ValueError(f"it crashes the HDF5 library, status {ran.returncode}")
    return np.frombuffer(ran.stdout, np.uint8)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block what Slurm sends to every process of a step: a process started here inherits that."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _convert(path: str) -> bytes:
    """Return the bytes in our form of what HDF5's library reads, with limited resources."""
    import h5py

    with suppress(ImportError, ValueError, OSError):  # Windows has none, macOS not the last
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    with h5py.File(path, "r", locking=False) as file:
        names = ARRAYS if "writers" in file or "series" in file else ARRAYS[:2]
        arrays = {name: _stored(file, name)[()] for name in names}
        found = {name: file.attrs[name] for name in ATTRIBUTES | OPTIONAL if name in file.attrs}
    attributes = {name: getattr(v, "tolist", lambda v=v: v)() for name, v in found.items()}
    return h5_bytes(arrays, attributes)


def _stored(file: Any, name: str) -> Any:
    """Return a dataset whose values are all stored in the file itself."""
    import h5py

    link = file.get(name, getlink=True)
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise ValueError(f"no dataset '{name}' that is stored in the file itself")
    shape = data.shape or ()
    size = data.dtype.itemsize * math.prod(shape)
    if data.dtype.hasobject or size > LIMIT:
        raise ValueError(f"{name} {data.dtype} {shape}, expected integers of at most {LIMIT} bytes")
    if data.chunks:
        chunks = math.prod(-(-n // c) for n, c in zip(shape, data.chunks, strict=True))
        complete = data.id.get_num_chunks() == chunks
    else:
        complete = data.id.get_storage_size() == size
    if not complete:
        raise ValueError(f"{name} were never written, or only some of them")
    return data


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(_convert(sys.argv[1]))
        sys.stdout.flush()
    except ValueError as error:
        sys.exit(str(error))
    except Exception as error:  # whatever HDF5 finds
        sys.exit(f"not an HDF5 file, or damaged: {' '.join(str(error).split()) or repr(error)}")
