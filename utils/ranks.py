"""The ranks of a run: processes that divide each batch among themselves; usually there is one.

What they exchange are sums over images, never means of means, so that any number of ranks gives the
results of one but for rounding.
"""

import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.device import device_name
from utils.failures import Elsewhere, RunError, Stopped, UsageError
from utils.launch import place

#: The node and the device of each rank.
Members = list[dict[str, str]]
#: How long a rank waits for the others: rank 0 may be fetching the raw digits.
TIMEOUT = timedelta(minutes=30)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Members]:
    """Be one of the ranks for the time of a block; all but rank 0 print nothing in it.

    They talk over ``nccl`` on GPUs (on AMD's that is RCCL), over ``gloo`` on CPUs.

    :raises RunError: a rank is lost.
    """
    here = {"node": platform.node(), "device": device_name(device)}
    if place().count == 1:
        yield [here]
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    started: list[Any] = [None] * place().count
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    with _heard(f"the {place().count} ranks did not meet at {address}"):
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
        dist.all_gather_object(started, (here, sys.argv[1:]))
    members, flags = zip(*started, strict=True)
    for other in flags:
        if other != flags[0]:
            _leave()
            raise UsageError(f"ranks were given different flags: {flags[0]} and {other}")
    with open(os.devnull, "w") if rank() > 0 else contextlib.nullcontext(sys.stdout) as output:
        with contextlib.redirect_stdout(output):
            try:
                yield list(members)
            except (Elsewhere, Stopped):
                _leave()
                raise
            wait()
    _leave()


def _leave() -> None:
    """End the talk, all ranks together and after their last exchange.

    Threads of it that still ran when Python ends would abort the process now and then.
    """
    if count() > 1:
        dist.destroy_process_group()


def described(device: torch.device, members: Members) -> str:
    """How many ranks on which nodes, their devices, and torch, in a line."""
    names = sorted({member["device"] for member in members})
    text = f"{device.type} ({', '.join(names)}), Python {platform.python_version()}"
    text += f", torch {torch.__version__}"
    if len(members) == 1:
        return text
    nodes = sorted({member["node"] for member in members})
    return f"{len(members)} ranks on {', '.join(nodes)}: {text}"


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is."""
    return dist.get_rank() if count() > 1 else 0


def share(total: int) -> slice:
    """This rank's part of ``total`` rows; parts differ by one row at most and may be empty."""
    return slice(total * rank() // count(), total * (rank() + 1) // count())


def add_up(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors, in place of each."""
    if count() > 1:
        with _heard():
            dist.all_reduce(tensor)
    return tensor


def gather(part: Tensor, total: int) -> Tensor:
    """All ``total`` rows, of which each rank has its :func:`share`."""
    if count() == 1:
        return part
    rows = part.new_zeros(total, *part.shape[1:])
    rows[share(total)] = part
    return add_up(rows)


def greatest(number: int, device: torch.device) -> int:
    """The greatest of the ranks' numbers."""
    if count() == 1:
        return number
    tensor = torch.tensor(number, device=device)
    with _heard():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def copy_first(tensors: Sequence[Tensor], values: Any) -> Any:
    """Fill the tensors with those of rank 0, and return its plain values."""
    if count() == 1:
        return values
    box = [values]
    with _heard():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        dist.broadcast_object_list(box, 0)
    return box[0]


def wait() -> None:
    """Go on when all ranks are here."""
    if count() > 1:
        with _heard():
            dist.barrier()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Rank 0 runs the block first; then the others, unless it failed there; then all go on.

    :raises Elsewhere: on the others, if it did.
    """
    if rank() == 0:
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(RunError):
                copy_first([], getattr(error, "exit_status", 1))
                _leave()
            raise
        copy_first([], 0)
    else:
        status = copy_first([], None)
        if status:
            raise Elsewhere(status)
        yield
    wait()


def refuse_batch_norm(model: nn.Module) -> None:
    """Batch norm would take the means of each rank's part of a batch, and not of the batch.

    :raises UsageError: the model has one, and there are several ranks.
    """
    if count() > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} has batch norm, of which each of {count()} ranks would "
            "see a part of the batch only; train it with one"
        )


@contextlib.contextmanager
def _heard(failure: str = "") -> Iterator[None]:
    """An exchange; where the connection breaks, another rank has ended before its time."""
    failure = failure or f"another of the {place().count} ranks was lost"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's only, and the base of all of torch.distributed's
        # Without the place in gloo's source, and without what it advises.
        reason = re.sub(r"^\[.*?\] *", "", str(error)).split(". ")[0].strip()
        raise RunError(
            f"{failure} ({reason}); another's own message, if any, is above; --resume goes on "
            "with a training that had begun"
        ) from error
