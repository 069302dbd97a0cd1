"""The schedules against torch's."""

import pytest
import torch
from torch import nn

from utils.engine.schedules import one_cycle


@pytest.mark.parametrize("steps", [10, 100, 992])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        assert 3e-3 * one_cycle(step, steps) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_one_cycle_of_a_single_step():
    assert 0 < one_cycle(0, 1) <= 1 and 0 < one_cycle(1, 2) <= 1
