"""Which of a run's processes this one is, as torchrun or Slurm says; read without torch."""

import os
from dataclasses import dataclass

from utils.failures import UsageError


@dataclass(frozen=True)
class Place:
    """The place of a process among the ranks of its run.

    :ivar rank: 0 … count-1; rank 0 alone prints results and writes files.
    :ivar count: the number of ranks.
    :ivar local_rank: the place among the ranks of its node, which says which GPU is its own.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0


def speaker() -> int:
    """The rank of this process, for messages: also before, and where, :func:`place` refuses."""
    name = "RANK" if "WORLD_SIZE" in os.environ else "SLURM_PROCID"
    return int(os.environ.get(name) or 0)


def place() -> Place:
    """By torchrun's variables, else by those of a Slurm step with several tasks, else alone.

    Slurm's become torchrun's, which ``torch.distributed`` reads. In a batch script itself there is
    no ``SLURM_STEP_NUM_TASKS``: only what srun started is a rank.

    :raises UsageError: a step over several nodes, and nothing says where rank 0 is.
    """
    variables = os.environ
    if "WORLD_SIZE" not in variables and int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if variables.get("SLURM_STEP_NUM_NODES", "1") != "1" and "MASTER_ADDR" not in variables:
            raise UsageError("ranks on several nodes without MASTER_ADDR; start with sbatch run.sh")
        variables.setdefault("MASTER_ADDR", "127.0.0.1")
        # By job and step, else two jobs on a node meet; Linux takes its own ports from 32768 on.
        step = int(variables["SLURM_JOB_ID"]) * 10 + int(variables["SLURM_STEP_ID"])
        variables.setdefault("MASTER_PORT", str(10000 + step % 20000))
        variables["RANK"] = variables["SLURM_PROCID"]
        variables["LOCAL_RANK"] = variables["SLURM_LOCALID"]
        variables["WORLD_SIZE"] = variables["SLURM_STEP_NUM_TASKS"]
    if variables.get("WORLD_SIZE", "1") in ("", "1"):
        return Place()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in variables]
    if missing:
        raise UsageError(f"WORLD_SIZE is set, {' and '.join(missing)} not; start with torchrun")
    rank = int(variables["RANK"])
    return Place(rank, int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_RANK", rank)))


def require_alone() -> None:
    """Refuse ranks, each of which would do the same.

    :raises UsageError: there are several.
    """
    if place().count > 1:
        raise UsageError(
            f"{place().count} ranks were started, but this command is one process; give --ntasks=1"
        )
