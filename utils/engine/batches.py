"""Images and classes in batches; and the logits of a whole split."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.distributed import collectives
from utils.distributed.environment import cores
from utils.errors import UsageError
from utils.mnist_dataset import MnistH5Dataset

#: Images at a time where no gradient is needed: enough to hide the overhead of a call, few enough
#: for the activations to stay in the cache.
EVALUATION_BATCH = 512

Item = TypeVar("Item")


@dataclass(frozen=True)
class Samples:
    """Rows of a dataset, on the device: with a slice, images (B, 1, H, W) and classes (B,).

    Images stay uint8 until they are needed, float32 in [0, 1]: 64 of 28 x 28 pixels take 20 µs,
    from float32 images 55 µs.

    :ivar images: of the whole file, uint8 (N, 1, H, W), in color (N, 3, H, W).
    :ivar classes: of the whole file, int64 (N,).
    :ivar rows: which of them, int64.
    """

    images: Tensor
    classes: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        index = self.rows[rows]
        return self.images.index_select(0, index).div(255), self.classes.index_select(0, index)


def load_rows(data: MnistH5Dataset, device: torch.device, rows: Tensor | None = None) -> Samples:
    """Return rows of a file (all by default), on the device."""
    rows = torch.arange(len(data)) if rows is None else rows
    images = torch.tensor(data.images)
    images = images.movedim(-1, 1).contiguous() if images.ndim == 4 else images.unsqueeze(1)
    return Samples(images.to(device), torch.from_numpy(data.classes).to(device), rows.to(device))


def batches(data: Samples, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield this rank's images (B, 1, H, W) and classes (B,) of each batch, and the batch's size.

    The last batch may be smaller, and a rank's part of it empty. Handing a batch over from a
    ``DataLoader``'s worker takes 80 times as long as taking it here.
    """
    if len(order) == 0:
        return  # split would give one empty batch
    alone = collectives.world_size() == 1
    rows = data.rows[order.to(data.rows.device)]
    for index, classes in zip(
        rows.split(batch_size), data.classes[rows].split(batch_size), strict=True
    ):
        part = slice(None) if alone else collectives.shard(len(index))
        yield data.images.index_select(0, index[part]).div(255), classes[part], len(index)


def one_ahead(items: Iterable[Item], *, wanted: bool) -> Iterator[Item]:
    """Yield the items, each made by a thread while the one before is used.

    The same thread makes them without ``wanted``, or where this process has one core.
    """
    if not wanted or cores() == 1:
        yield from items
        return
    iterator = iter(items)
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(next, iterator, None)
        while (item := upcoming.result()) is not None:
            upcoming = executor.submit(next, iterator, None)
            yield item


@torch.inference_mode()
def predict(model: nn.Module, data: Samples) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) and labels (N,) of all images, in order; the model in eval mode.

    Ranks divide the images among themselves, none twice, and each gets the logits of all.
    """
    model.eval()
    logits, labels = [], []
    shard = collectives.shard(len(data))
    for start in range(shard.start, max(shard.stop, shard.start + 1), EVALUATION_BATCH):
        images, batch_labels = data[slice(start, min(start + EVALUATION_BATCH, shard.stop))]
        logits.append(model(images))
        labels.append(batch_labels)
    return (
        collectives.gather(torch.cat(logits), len(data)),
        collectives.gather(torch.cat(labels), len(data)),
    )


def finite_log_probabilities(logits: Tensor, source: str | Path) -> np.ndarray:
    """Return the log probabilities (N, C), float64, of logits (N, C).

    :param source: the weights' file.
    :raises UsageError: the logits are not finite.
    """
    if not logits.isfinite().all():
        raise UsageError(
            f"{source} gives logits that are not finite: its weights are too large; "
            "give another checkpoint"
        )
    return logits.cpu().double().log_softmax(1).numpy()


@torch.inference_mode()
def log_probabilities(model: nn.Module, images: Tensor, source: str | Path) -> np.ndarray:
    """Return the log probabilities (N, C) of images (N, 1, H, W), float32 in [0, 1].

    Raises as :func:`finite_log_probabilities`.
    """
    logits = [model.eval()(batch) for batch in images.split(EVALUATION_BATCH)]
    return finite_log_probabilities(torch.cat(logits), source)


def mean_probabilities(members: Sequence[np.ndarray]) -> np.ndarray:
    """Return the log of the mean probabilities (N, C) of networks, from their logs (N, C)."""
    if len(members) == 1:
        return members[0]
    mean: np.ndarray = np.logaddexp.reduce(np.stack(members)) - np.log(len(members))
    return mean


def loss_and_accuracy(model: nn.Module, data: Samples) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy; the model stays in eval mode."""
    logits, classes = predict(model, data)
    correct = int((logits.argmax(1) == classes).sum())
    return F.cross_entropy(logits, classes).item(), correct / len(classes)


def confusion_matrix(model: nn.Module, data: Samples) -> np.ndarray:
    """Return the number of images (C, C) by class (row) and predicted class."""
    logits, classes = (each.cpu() for each in predict(model, data))
    count = logits.shape[1]
    pairs = count * classes + logits.argmax(1)
    return pairs.bincount(minlength=count**2).view(count, count).numpy()
