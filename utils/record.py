"""What ran: the facts that a record holds so that a result can be traced and made again."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.files import ROOT, recorded, writing

PACKAGES = ("torch", "torchvision", "h5py", "numpy", "scikit-learn", "matplotlib")
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
)


def facts(device: torch.device) -> dict[str, Any]:
    """Command, code, versions, device and Slurm job of this process: plain values for JSON."""
    return {
        "command": _command(),
        "working_directory": recorded(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "versions": versions(),
        "device": {
            "type": device.type,
            "name": _device_name(device),
            "threads": torch.get_num_threads(),
        },
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write_json(path: Path, content: dict[str, Any], *, exclusive: bool = False) -> None:
    """Write ``content`` as JSON, whole or not at all; NaN, which JSON lacks, becomes null."""
    with writing(path, exclusive=exclusive) as temporary:
        temporary.write_text(
            json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
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


def _git() -> dict[str, Any] | None:
    """The commit, and whether tracked files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[1]:
            return None
        commit = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, or no commit yet
        return None
    return {"commit": commit, "changed": changed}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
