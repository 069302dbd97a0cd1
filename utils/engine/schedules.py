"""Schedules: the learning rate as a share of the maximum, for step 0 … steps - 1."""

import math


def constant(step: int, steps: int) -> float:
    """Return 1 for every step."""
    return 1.0


def one_cycle(step: int, steps: int) -> float:
    """Rise from 1/25 during the first 30 % of the steps, then fall to 1/250 000, along cosines.

    It is that of ``torch.optim.lr_scheduler.OneCycleLR`` (Smith and Topin, arXiv:1708.07120). The
    maximum is reached exactly where 0.3 steps is a whole number.

    >>> [round(one_cycle(step, 100), 3) for step in (0, 29, 64, 99)]
    [0.04, 1.0, 0.5, 0.0]
    """
    peak = 0.3 * steps - 1
    if step <= peak:
        start, end, share = 1 / 25, 1.0, step / peak
    else:
        start, end, share = 1.0, 1 / 250_000, (step - peak) / (steps - 1 - peak)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES = {"constant": constant, "one_cycle": one_cycle}
