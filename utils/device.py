"""Which device a command runs on."""

import os

import torch

from utils.failures import RunError, UsageError


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU where torch sees one (ROCm's are ``cuda`` too), else the CPU.

    :raises UsageError: ``cuda`` was asked for, and torch sees none.
    :raises RunError: ``auto`` in a Slurm job that was given a GPU which torch does not see.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise UsageError("--device cuda, but torch sees no GPU here; give --device cpu")
    gpus = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if gpus:
        raise RunError(
            f"this job was given the GPUs {gpus}, but torch {torch.__version__} sees none; "
            "check the container, or give --device cpu"
        )
    return torch.device("cpu")
