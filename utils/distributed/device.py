"""The device that a command runs on."""

import os
import platform
from pathlib import Path

import torch

from utils.distributed.environment import rank_info, whole_number
from utils.errors import RunError, UsageError


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; ROCm's GPUs are ``cuda`` too.

    ``auto`` is a GPU where torch sees one, else the CPU. Each rank of a node has its own GPU: the
    one of its number where it sees several, the only one where Slurm shows each rank its own.

    :raises UsageError: ``cuda``, and torch sees none.
    :raises RunError: ``auto`` in a Slurm job that was given a GPU which torch does not see, or more
        ranks than GPUs.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        info, visible = rank_info(), torch.cuda.device_count()
        gpus = max(visible, whole_number("SLURM_GPUS_ON_NODE", "0"))
        if info.local_rank >= gpus:
            raise RunError(
                f"rank {info.rank} is number {info.local_rank + 1} of its node, which has {gpus} "
                "GPUs; give as many --ntasks-per-node as --gpus-per-node"
            )
        return torch.device("cuda", info.local_rank if visible > 1 else 0)
    if name == "cuda":
        raise UsageError("--device cuda, but torch sees no GPU here; give --device cpu")
    given = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if given:
        raise RunError(
            f"this job was given the GPUs {given}, but torch {torch.__version__} sees none; "
            "check the container, or give --device cpu"
        )
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return the vendor's name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
