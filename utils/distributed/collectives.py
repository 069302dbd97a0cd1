"""What the ranks of a run exchange; each function returns at once where there is one rank.

Ranks are processes that divide each batch among themselves. They exchange sums over images, never
means of means, so that any number of ranks gives the results of one but for rounding.
"""

import contextlib
import io
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.distributed.device import device_name
from utils.distributed.environment import rank_info
from utils.errors import PeerAborted, RunError, Stopped, UsageError

#: The node and the device of each rank.
RankDevices = list[dict[str, str]]
#: How long a rank waits for the others, of which one may be stopped or gone.
TIMEOUT = timedelta(seconds=100)
#: Seconds between signs of life where rank 0 works alone, such as downloading the raw digits.
ALIVE_EVERY = 20


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[RankDevices]:
    """Join the other ranks for the block, in which all ranks but 0 print nothing.

    The backend is ``nccl`` on GPUs (on AMD's that is RCCL), ``gloo`` on CPUs.

    :raises UsageError: the ranks were given different flags.
    :raises RunError: a rank is lost.
    """
    local = {"node": platform.node(), "device": device_name(device)}
    ranks = rank_info().world_size
    if ranks == 1:
        yield [local]
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    gathered: list[Any] = [None] * ranks
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    failure = f"the {ranks} ranks did not meet at {address}"

    def give_up() -> None:  # torch itself takes up to three times the limit
        print(f"rank {rank_info().rank}: error: {failure} in time", file=sys.stderr, flush=True)
        os._exit(RunError.exit_status)

    with translate_errors(failure), _every(TIMEOUT.total_seconds() + 5, give_up):
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
        dist.all_gather_object(gathered, (local, sys.argv[1:]))
    devices, flags = zip(*gathered, strict=True)
    for other in flags:
        if other != flags[0]:
            _destroy_process_group()
            raise UsageError(f"ranks were given different flags: {flags[0]} and {other}")
    with contextlib.redirect_stdout(io.StringIO() if rank() > 0 else sys.stdout):
        try:
            yield list(devices)
        except (PeerAborted, Stopped):
            _destroy_process_group()
            raise
        barrier()
    _destroy_process_group()


def _destroy_process_group() -> None:
    """Destroy the group, on all ranks together and after their last exchange.

    Its threads, still running when Python ends, would abort the process now and then.
    """
    if world_size() > 1:
        dist.destroy_process_group()


def describe_devices(device: torch.device, devices: RankDevices) -> str:
    """Return a line with the ranks, their nodes and devices, and the version of torch."""
    names = sorted({each["device"] for each in devices})
    text = f"{device.type} ({', '.join(names)}), Python {platform.python_version()}"
    text += f", torch {torch.__version__}"
    if len(devices) == 1:
        return text
    nodes = sorted({each["node"] for each in devices})
    return f"{len(devices)} ranks on {', '.join(nodes)}: {text}"


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def shard(total: int) -> slice:
    """Return this rank's part of ``total`` rows; sizes differ by one at most, and may be zero."""
    return slice(total * rank() // world_size(), total * (rank() + 1) // world_size())


def all_reduce_sum(*tensors: Tensor) -> None:
    """Replace each tensor by the sum over all ranks."""
    if world_size() > 1:
        with translate_errors():
            for tensor in tensors:
                dist.all_reduce(tensor)


def gather(part: Tensor, total: int) -> Tensor:
    """Return all ``total`` rows, of which each rank has its :func:`shard`."""
    if world_size() == 1:
        return part
    rows = part.new_zeros(total, *part.shape[1:])
    rows[shard(total)] = part
    all_reduce_sum(rows)
    return rows


def all_reduce_max(number: int, device: torch.device) -> int:
    """Return the largest of the ranks' numbers."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number, device=device)
    with translate_errors():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def broadcast(tensors: Sequence[Tensor], values: Any) -> Any:
    """Fill the tensors with those of rank 0, and return its plain ``values``."""
    if world_size() == 1:
        return values
    box = [values]
    with translate_errors():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        dist.broadcast_object_list(box, 0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with translate_errors():
            dist.barrier()


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on rank 0, however long it takes, then on the others, unless it failed there.

    :raises PeerAborted: on the others, if it did.
    """
    if rank() == 0:
        try:
            with _every(ALIVE_EVERY, lambda: broadcast([], None)):
                yield
        except BaseException as error:
            with contextlib.suppress(RunError):
                broadcast([], getattr(error, "exit_status", 1))
                _destroy_process_group()
            raise
        broadcast([], 0)
    else:
        while (status := broadcast([], None)) is None:
            pass
        if status:
            raise PeerAborted(status)
        yield
    barrier()


@contextlib.contextmanager
def _every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call a function from another thread whenever so many seconds of the block have passed."""
    done = threading.Event()

    def repeat() -> None:
        with contextlib.suppress(RunError):  # the next exchange raises it again
            while not done.wait(seconds):
                call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def refuse_batch_norm(model: nn.Module) -> None:
    """Refuse batch norm on several ranks: its means would be those of each rank's part of a batch.

    :raises UsageError: the model has it, and there are several ranks.
    """
    if world_size() > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} has batch norm, and each of {world_size()} ranks would see "
            "only its part of a batch; train it with one rank"
        )


@contextlib.contextmanager
def translate_errors(failure: str = "") -> Iterator[None]:
    """Turn the errors of an exchange, of which the loss of a rank is the usual, into RunError."""
    failure = failure or f"another of the {rank_info().world_size} ranks was lost"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:  # gloo's, and the base of torch.distributed's
        # Without the place in gloo's source, and without what it advises.
        reason = re.sub(r"^\[.*?\] *", "", str(error)).split(". ")[0].strip()
        raise RunError(
            f"{failure} ({reason}); its own message, if any, is above; a run that had started "
            "continues with --resume"
        ) from error
