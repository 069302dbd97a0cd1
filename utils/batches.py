"""Images and labels in batches, from memory where they fit; and the logits of all of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from utils import ranks
from utils.mnist_dataset import MnistH5Dataset

#: ``samples[index tensor]`` is (images (B, 1, H, W), labels (B,)).
Samples = TensorDataset | Subset[tuple[Any, Any]]
#: Bytes of float32 images up to which a split is kept in memory: MNIST four times over fits, and a
#: laptop has room for it.
MEMORY_LIMIT = 2**30
#: Images at a time where no gradient is needed: large enough that the overhead vanishes, small
#: enough for the activations to stay in the cache.
EVALUATION_BATCH = 512


def load_rows(data: MnistH5Dataset, device: torch.device, rows: Tensor | None = None) -> Samples:
    """Some rows (or all) of a file: in the device's memory if they fit, else read as needed."""
    rows = torch.arange(len(data)) if rows is None else rows
    if 4 * len(rows) * data.images[0].size > MEMORY_LIMIT:
        return Subset(data, rows)  # type: ignore[arg-type]  # indexed as a whole
    images, labels = data[rows]
    return TensorDataset(images.to(device), labels.to(device))


def batches(
    data: Samples, order: Tensor, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 1, H, W) and labels (B,) in the given order; the last batch may be smaller.

    Of several ranks each gets its share of every batch, which may be empty.

    Files that are too large for memory are read here as well: a mapped batch takes 40 µs, and
    passing it on from a ``DataLoader``'s worker took 35 times as long as not having one.
    """
    if len(order) == 0:
        return  # split would give one empty batch
    order = order.to(device) if isinstance(data, TensorDataset) else order
    for index in order.split(batch_size):
        images, labels = data[index[ranks.share(len(index))]]
        yield images.to(device), labels.to(device)


@torch.inference_mode()
def predict(model: nn.Module, data: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of all images, in their order; the model is in eval mode.

    Ranks divide the images among themselves, none twice, and each gets the logits of all.
    """
    model.eval()
    logits, labels = [], []
    mine = ranks.share(len(data))
    for start in range(mine.start, max(mine.stop, mine.start + 1), EVALUATION_BATCH):
        # A view, in memory.
        images, batch_labels = data[slice(start, min(start + EVALUATION_BATCH, mine.stop))]
        logits.append(model(images.to(device)))
        labels.append(batch_labels.to(device))
    total = len(data)
    return ranks.gather(torch.cat(logits), total), ranks.gather(torch.cat(labels), total)
