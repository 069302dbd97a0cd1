"""What ran: what a record holds so that a result can be traced and made again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UsageError, escaped
from utils.records.files import ROOT, relative_to_root, sha256_of, write_text
from utils.records.typed import LIMIT, read_bytes, shown

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "h5py", "numpy", "scikit-learn", "matplotlib")
#: Folders whose Python files decide what a run computes.
SOURCES = ("DJSW", "models", "datasetprep", "utils")
#: As ``git apply`` reads it, whatever the user's configuration.
DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
#: All but results, which decide no other result, and may be staged while others are made.
CODE = (":/", ":(top,exclude)reports", ":(top,exclude)weights")
#: What a job was given. Slurm's other variables repeat these, or hold absolute paths.
SLURM_VARIABLES = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_GPUS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_PER_NODE",
    "SLURM_MEM_PER_GPU",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
)
#: Where the name of the container's image may be, which the first two set inside of it.
IMAGE_VARIABLES = ("SINGULARITY_CONTAINER", "APPTAINER_CONTAINER", "DJSW_CONTAINER")
#: Most characters of a diff or a script that a record keeps: whole, it would be refused by readers.
TEXT_KEPT = 1_000_000
#: Values that only a record keeps, since they may be long.
RECORD_ONLY = ("source", "diff", "batch_script")

#: Command, code, versions, job and device of a process: plain values for JSON.
Provenance = dict[str, Any]


def provenance(device: torch.device, devices: Sequence[Mapping[str, str]]) -> Provenance:
    """Return :func:`code_provenance` and the devices of this process.

    :param devices: the node and the device of each rank.
    """
    import torch

    code = code_provenance()
    if torch.version.hip:
        code["versions"]["hip"] = torch.version.hip
    return {
        **code,
        "device": {
            "type": device.type,
            "name": devices[0]["device"],
            "threads": torch.get_num_threads(),
            "ranks": list(devices),
        },
    }


def code_provenance() -> Provenance:
    """Return command, code, versions and Slurm job of this process."""
    commit, diff = _git()
    source, changed = source_hashes(), bool(diff.strip())
    texts = {"diff": diff, "batch_script": _from_run_sh("DJSW_BATCH_SCRIPT")}
    for name, text in texts.items():
        if text and len(text) > TEXT_KEPT:
            digest = hashlib.sha256(text.encode()).hexdigest()
            texts[name] = f"left out: {len(text):,} characters with the SHA-256 {digest}"
    image = next(filter(None, map(os.environ.get, IMAGE_VARIABLES)), "none")
    return {
        "command": _command(),
        "working_directory": escaped(relative_to_root(Path.cwd())),
        "started": utc_now(),
        "git": commit and {"commit": commit, "changed": changed},
        "source_sha256": source_sha256(source),
        **({} if commit and not changed else {"source": source}),  # else the commit has them
        **texts,
        "versions": versions(),
        "container": None if image == "none" else escaped(Path(image).name),
        "slurm": {n: escaped(os.environ[n]) for n in SLURM_VARIABLES if n in os.environ},
    }


def describe_platform(session: Mapping[str, Any]) -> str:
    """Return what of a session's machine decides the bits of its results."""
    device = session["device"]
    ranks, threads = len(device["ranks"]), device["threads"]
    return (
        f"{ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)}, "
        f"{device['type']} ({device['name']}), torch {session['versions']['torch']}"
    )


def resource_usage(seconds: float, session: Mapping[str, Any]) -> dict[str, Any]:
    """Return seconds, the peak memory of rank 0 in bytes, and the hours of all GPUs."""
    import torch

    on_gpu = session["device"]["type"] == "cuda"
    return {
        "seconds": seconds,
        "peak_memory_bytes": {
            "process": _peak_memory(),
            "gpu": torch.cuda.max_memory_allocated() if on_gpu else None,
        },
        "gpu_hours": len(session["device"]["ranks"]) * seconds / 3600 if on_gpu else 0.0,
    }


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


def utc_now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_hashes() -> dict[str, str]:
    """Return the SHA-256 of each source file, by its path in the repository.

    A record precedes the commit that holds it, so commits alone cannot tell whether the code is
    still the same.
    """
    files = (path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): sha256_of(path) for path in sorted(files)}


def source_sha256(source: Mapping[str, str]) -> str:
    """Return one hash over :func:`source_hashes`."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(source.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def changed_files(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """Return " in " and the source files that differ; nothing where their hashes are unknown."""
    if before is None or now is None:
        return ""
    names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    return f" in {', '.join(names)}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the innermost values, each with its names joined by dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def first_difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return the name of the first value that differs, with both values, as JSON has them."""
    before, here = (dict(flat(json.loads(json.dumps(each)))) for each in (found, expected))
    for name in before | here:
        if name not in ignored and before.get(name) != here.get(name):
            return name, before.get(name), here.get(name)
    return None


def write_json(path: Path, content: Mapping[str, Any], *, exclusive: bool = False) -> None:
    """Write ``content`` as JSON, whole or not at all; NaN, which JSON lacks, becomes null."""
    text = json.dumps(without_nan(content), indent=2, allow_nan=False)
    write_text(path, text + "\n", exclusive=exclusive)


def without_nan(value: Any) -> Any:
    """Return ``value`` as :func:`write_json` writes it, with None for numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command() -> str:
    """Return the command line, with absolute paths made relative to the repository."""
    words = []
    for word in sys.argv:
        flag, equals, value = ("", "", word)
        if word.startswith("--") and "=" in word:
            flag, equals, value = word.partition("=")
        path = relative_to_root(value) if Path(value).is_absolute() else value
        words.append(flag + equals + path)
    return escaped(shlex.join(["python", *words]))


def _from_run_sh(variable: str) -> str | None:
    """Return the text of the regular file that ``run.sh`` names in an environment variable."""
    path = os.environ.get(variable)
    try:
        return read_bytes(Path(path), LIMIT).decode(errors="replace") if path else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{variable} is {path!r}: {shown(error)}; unset it") from None


def _git() -> tuple[str | None, str]:
    """Return the commit, and what differs from it: tracked files as a diff, new sources by name.

    Published results (``reports/``, ``weights/``) do not count.
    ``run.sh`` writes the same to a file, since the container of a job may lack git. The hashes of
    new sources are in :func:`source_hashes`. No commit outside a checkout.
    """
    text = _from_run_sh("DJSW_GIT")
    if text is not None:
        commit, _, diff = text.partition("\n")
        return escaped(commit) or None, diff

    def git(*arguments: str) -> str:
        # A colleague may run what another has cloned.
        command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout.decode(
            errors="replace"
        )

    try:
        root, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(root) != ROOT:
            return None, ""
        new = git("ls-files", "--others", "--exclude-standard", "--", *SOURCES).splitlines()
        diff = git("diff", *DIFF, "HEAD", "--", *CODE)
        return commit, diff + "".join(f"new file {name}\n" for name in new)
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, or no commit yet
        return None, ""
