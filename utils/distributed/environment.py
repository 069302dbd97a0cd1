"""Which of a run's processes this one is, from torchrun's or Slurm's variables; without torch."""

import os
from dataclasses import dataclass

from utils.errors import UsageError


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process in its run.

    :ivar rank: 0 to world_size - 1; rank 0 alone prints results and writes files.
    :ivar world_size: the number of ranks.
    :ivar local_rank: its number on its node, which selects its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def env_rank() -> int:
    """Return the rank of this process, for messages, even where :func:`rank_info` refuses."""
    try:
        return whole_number("RANK" if "WORLD_SIZE" in os.environ else "SLURM_PROCID", "0")
    except UsageError:
        return 0


def rank_info() -> RankInfo:
    """Read torchrun's variables, else those of a Slurm step with several tasks; else rank 0 of 1.

    Slurm's are copied to torchrun's, which ``torch.distributed`` reads. A batch script itself has
    no ``SLURM_STEP_NUM_TASKS``: only a process started by srun is a rank.

    :raises UsageError: the variables are incomplete, such as a step on several nodes without
        MASTER_ADDR, or one is no number.
    """
    variables = os.environ
    if "WORLD_SIZE" not in variables and whole_number("SLURM_STEP_NUM_TASKS", "1") > 1:
        if variables.get("SLURM_STEP_NUM_NODES", "1") != "1" and "MASTER_ADDR" not in variables:
            raise UsageError("ranks on several nodes without MASTER_ADDR; start with sbatch run.sh")
        variables.setdefault("MASTER_ADDR", "127.0.0.1")
        # By job and step, or two jobs on a node would meet; Linux takes its own ports from 32768.
        step = whole_number("SLURM_JOB_ID") * 10 + whole_number("SLURM_STEP_ID")
        variables.setdefault("MASTER_PORT", str(10000 + step % 20000))
        variables["RANK"] = str(whole_number("SLURM_PROCID"))
        variables["LOCAL_RANK"] = str(whole_number("SLURM_LOCALID"))
        variables["WORLD_SIZE"] = variables["SLURM_STEP_NUM_TASKS"]
    if variables.get("WORLD_SIZE", "1") in ("", "1"):
        return RankInfo()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in variables]
    if missing:
        raise UsageError(f"WORLD_SIZE is set, {' and '.join(missing)} not; start with torchrun")
    whole_number("MASTER_PORT")
    rank = whole_number("RANK")
    return RankInfo(rank, whole_number("WORLD_SIZE"), whole_number("LOCAL_RANK", str(rank)))


def whole_number(variable: str, default: str = "missing") -> int:
    """Return the whole number from 0 in an environment variable, of which an empty one is none.

    :raises UsageError: it is something else.
    """
    text = os.environ.get(variable) or default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{variable} is {text!r}, not a whole number; start with torchrun or srun")
    return int(text)


def require_single_process() -> None:
    """Refuse several ranks, each of which would do the same.

    :raises UsageError: there are several.
    """
    world_size = rank_info().world_size
    if world_size > 1:
        raise UsageError(
            f"{world_size} ranks were started, but this command is a single process; "
            "give --ntasks=1"
        )


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
