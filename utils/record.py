"""What ran: the facts that a record holds so that a result can be traced and made again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import ROOT, recorded, sha256_of, writing

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "h5py", "numpy", "scikit-learn", "matplotlib")
#: Folders whose Python files decide what a run computes.
SOURCES = ("DJSW", "models", "datasetprep", "utils")
#: As ``git apply`` reads it, whatever the user's configuration.
DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
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
#: The facts that only a record keeps: they may be long.
RECORD_ONLY = ("source", "diff", "batch_script")


def facts(device: torch.device, members: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """:func:`code_facts` and the devices of this process.

    :param members: the node and the device of each rank, as :func:`utils.ranks.joined` gives them.
    """
    import torch

    return {
        **code_facts(),
        "device": {
            "type": device.type,
            "name": members[0]["device"],
            "threads": torch.get_num_threads(),
            "ranks": list(members),
        },
    }


def code_facts() -> dict[str, Any]:
    """Command, code, versions and Slurm job of this process: plain values for JSON."""
    commit, diff = _git()
    source = source_hashes()
    return {
        "command": _command(),
        "working_directory": recorded(Path.cwd()),
        "started": now(),
        "git": commit and {"commit": commit, "changed": bool(diff.strip())},
        "source_sha256": source_sha256(source),
        "source": source,
        "diff": diff,
        "batch_script": _handed_over("DJSW_BATCH_SCRIPT"),
        "versions": versions(),
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
    }


def ran_on(facts: Mapping[str, Any]) -> str:
    """What of a process's machine decides the bits of its results."""
    device = facts["device"]
    ranks, threads = len(device.get("ranks", [None])), device["threads"]
    return (
        f"{ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)}, "
        f"{device['type']} ({device['name']}), torch {facts['versions']['torch']}"
    )


def spent(seconds: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a process used so far: seconds, rank 0's peak memory in bytes, hours of all its GPUs."""
    import torch

    on_gpu = facts["device"]["type"] == "cuda"
    return {
        "seconds": seconds,
        "peak_memory_bytes": {
            "process": _peak_memory(),
            "gpu": torch.cuda.max_memory_allocated() if on_gpu else None,
        },
        "gpu_hours": len(facts["device"]["ranks"]) * seconds / 3600 if on_gpu else 0.0,
    }


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_hashes() -> dict[str, str]:
    """SHA-256 of each source file, by its path in the repository.

    Committed or not: a record precedes the commit that holds it, so a commit alone cannot tell
    whether the code is still the same.
    """
    home = Path(__file__).resolve().parents[1]
    files = (path for folder in SOURCES for path in (home / folder).rglob("*.py"))
    return {path.relative_to(home).as_posix(): sha256_of(path) for path in sorted(files)}


def source_sha256(source: Mapping[str, str]) -> str:
    """One hash over :func:`source_hashes`."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(source.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The innermost values, each with its names joined by dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def write_json(path: Path, content: dict[str, Any], *, exclusive: bool = False) -> None:
    """Write ``content`` as JSON, whole or not at all; NaN, which JSON lacks, becomes null."""
    with writing(path, exclusive=exclusive) as temporary:
        temporary.write_text(
            json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def without_nan(value: Any) -> Any:
    """``value`` as :func:`write_json` writes it: numbers that JSON lacks are ``None``."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command() -> str:
    """The command line, its absolute paths made relative to the repository."""
    words = []
    for word in sys.argv:
        flag, equals, value = ("", "", word)
        if word.startswith("--") and "=" in word:
            flag, equals, value = word.partition("=")
        words.append(flag + equals + (recorded(value) if Path(value).is_absolute() else value))
    return shlex.join(["python", *words])


def _handed_over(variable: str) -> str | None:
    """The text of the file that ``run.sh`` names in an environment variable."""
    path = os.environ.get(variable)
    return Path(path).read_text(encoding="utf-8", errors="replace") if path else None


def _git() -> tuple[str | None, str]:
    """The commit and how files differ from it: tracked ones, and sources that are not added yet.

    ``run.sh`` leaves both in a file, in the same way, since the container of a job may lack git. No
    commit outside a checkout.
    """
    text = _handed_over("DJSW_GIT")
    if text is not None:
        commit, _, diff = text.partition("\n")
        return commit or None, diff

    def git(*arguments: str, index: str | None = None) -> str:
        # A colleague may run what another has cloned.
        command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
        environment = {**os.environ, "GIT_INDEX_FILE": index} if index else None
        ran = subprocess.run(command, capture_output=True, check=True, env=environment)
        return ran.stdout.decode(errors="replace")

    try:
        asked = git("rev-parse", "--show-toplevel", "HEAD", "--git-path", "index")
        root, commit, index = asked.splitlines()
        if Path(root) != Path(__file__).resolve().parents[1]:
            return None, ""
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(ROOT / index, folder)  # to add new sources in
            git("add", "--intent-to-add", *SOURCES, index=copy)
            return commit, git("diff", *DIFF, "HEAD", index=copy)
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, or no commit yet
        return None, ""
