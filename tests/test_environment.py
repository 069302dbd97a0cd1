"""The rank of a process, from torchrun's and Slurm's variables."""

import os

import pytest
from conftest import SLURM, TORCHRUN

from utils.distributed.environment import RankInfo, env_rank, rank_info
from utils.errors import UsageError


def test_incomplete_variables(variables):
    variables.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK and MASTER_ADDR and MASTER_PORT not; start with"):
        rank_info()
    variables.setenv("WORLD_SIZE", "")
    assert rank_info() == RankInfo()


def test_rank_by_slurm(variables):
    assert rank_info() == RankInfo(0, 1, 0)
    for name, value in SLURM.items():
        variables.setenv(name, value)
    with pytest.raises(UsageError, match="without MASTER_ADDR; start with sbatch run.sh"):
        rank_info()
    variables.setenv("MASTER_ADDR", "nid005001")
    assert rank_info() == RankInfo(rank=11, world_size=16, local_rank=3)
    assert [os.environ[name] for name in TORCHRUN] == ["11", "16", "3", "nid005001", "17110"]
    assert rank_info() == RankInfo(rank=11, world_size=16, local_rank=3)


def test_ports_of_jobs_and_steps_differ(variables):
    ports = set()
    for job, step in (("4711", "0"), ("4711", "1"), ("4712", "0")):
        variables.delenv("WORLD_SIZE", raising=False)
        variables.delenv("MASTER_PORT", raising=False)
        named = SLURM | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step, "SLURM_STEP_NUM_NODES": "1"}
        for name, value in named.items():
            variables.setenv(name, value)
        rank_info()
        ports.add(int(os.environ["MASTER_PORT"]))
    assert len(ports) == 3
    assert all(10_000 <= port < 32_768 for port in ports)


def test_a_batch_script_is_no_rank(variables):
    variables.setenv("SLURM_NTASKS", "16")
    variables.setenv("SLURM_PROCID", "0")
    assert rank_info() == RankInfo(0, 1, 0)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", *SLURM])
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "²", 5000 * "9"])
def test_variables_that_are_no_numbers(variables, name, value):
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}
    named = SLURM if name in SLURM else torchrun
    for each in ({"MASTER_ADDR": "a"}, named, {name: value}):
        for variable, text in each.items():
            variables.setenv(variable, text)
    assert env_rank() in (0, 1, 11)
    if name != "SLURM_STEP_NUM_NODES":  # it is compared with 1 only
        with pytest.raises(UsageError, match=f"^{name} is '.*', not a whole number; start with"):
            rank_info()
