"""The device of each rank."""

import pytest
import torch
from conftest import SLURM

from utils.distributed.device import choose_device
from utils.errors import RunError


def test_each_rank_has_a_gpu_of_its_own(variables):
    for name, value in {**SLURM, "MASTER_ADDR": "nid005001"}.items():
        variables.setenv(name, value)
    variables.setattr(torch.cuda, "is_available", lambda: True)
    variables.setattr(torch.cuda, "device_count", lambda: 8)
    assert choose_device("auto") == torch.device("cuda", 3)
    variables.setattr(torch.cuda, "device_count", lambda: 1)  # Slurm shows each rank its own
    variables.setenv("SLURM_GPUS_ON_NODE", "8")
    assert choose_device("auto") == torch.device("cuda", 0)
    variables.setenv("SLURM_GPUS_ON_NODE", "1")
    for gpus in (1, 2):
        variables.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with pytest.raises(RunError, match=f"is number 4 of its node, which has {gpus} GPU"):
            choose_device("auto")
