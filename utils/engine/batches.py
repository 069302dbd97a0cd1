"""Images and labels in batches, from memory where they fit; and the logits of a whole split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from utils.distributed import collectives
from utils.errors import UsageError
from utils.mnist_dataset import MnistH5Dataset

#: ``samples[index tensor]`` is (images (B, 1, H, W), labels (B,)).
Samples = TensorDataset | Subset[tuple[Any, Any]]
#: Bytes of float32 images up to which a split is kept in memory; MNIST's 70 000 images fit four
#: times. From the mapped file a batch takes 45 µs more, 7 % of an epoch of SMLP.
MEMORY_LIMIT = 2**30
#: Images at a time where no gradient is needed: enough to hide the overhead of a call, few enough
#: for the activations to stay in the cache.
EVALUATION_BATCH = 512


def load_rows(data: MnistH5Dataset, device: torch.device, rows: Tensor | None = None) -> Samples:
    """Load rows of a file (all by default) into the device's memory; do not if they do not fit."""
    rows = torch.arange(len(data)) if rows is None else rows
    if 4 * len(rows) * data.images[0].size > MEMORY_LIMIT:
        return Subset(data, rows)  # type: ignore[arg-type]  # indexed as a whole
    images, labels = data[rows]
    return TensorDataset(images.to(device), labels.to(device))


def batches(
    data: Samples, order: Tensor, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield this rank's images (B, 1, H, W) and labels (B,) of each batch, and the batch's size.

    The last batch may be smaller, and a rank's part of it empty. Mapped files are read here too:
    that takes 40 µs, and handing a batch over from a ``DataLoader``'s worker took 35 times as long.
    """
    if len(order) == 0:
        return  # split would give one empty batch
    order = order.to(device) if isinstance(data, TensorDataset) else order
    alone = collectives.world_size() == 1
    for index in order.split(batch_size):
        images, labels = data[index if alone else index[collectives.shard(len(index))]]
        yield images.to(device), labels.to(device), len(index)


@torch.inference_mode()
def predict(model: nn.Module, data: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) and labels (N,) of all images, in order; the model in eval mode.

    Ranks divide the images among themselves, none twice, and each gets the logits of all.
    """
    model.eval()
    logits, labels = [], []
    shard = collectives.shard(len(data))
    for start in range(shard.start, max(shard.stop, shard.start + 1), EVALUATION_BATCH):
        # A slice of data in memory is a view.
        images, batch_labels = data[slice(start, min(start + EVALUATION_BATCH, shard.stop))]
        logits.append(model(images.to(device)))
        labels.append(batch_labels.to(device))
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


def loss_and_accuracy(model: nn.Module, data: Samples, device: torch.device) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy; the model stays in eval mode."""
    logits, classes = predict(model, data, device)
    correct = int((logits.argmax(1) == classes).sum())
    return F.cross_entropy(logits, classes).item(), correct / len(classes)
