"""Random numbers of a run: each use has a seed of its own, so that a resumed run draws the same."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, random_split

from utils.errors import RunError

#: Seed of the 90/10 split: the same whatever ``--seed`` is, so that seeds can be compared.
SPLIT_SEED = 42
#: Purposes of random numbers in an epoch; those of dropout differ by rank.
ORDER, AUGMENTATION, DROPOUT = 0, 1, 2


def split_rows(
    count: int, fold: str | None = None, writers: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Return the rows for training and for validation: 90 % and 10 %, drawn at random.

    :param fold: "K/N": instead, validate on the K-th of N parts of consecutive rows. In USPS
        neighbors are alike, often of one writer. "K/N/writers": of N parts that share no writer.
    :param writers: who wrote each image, (count,).
    :raises RunError: there are fewer than 10 images, or fewer than parts; or no writers.
    """
    parts_wanted = 10 if fold is None else max(10, int(fold.split("/")[1]))
    if count < parts_wanted:
        raise RunError(f"{count} images are too few to train on; {parts_wanted} are needed")
    if fold is not None:
        part, of = map(int, fold.split("/")[:2])
        rows, start, stop = torch.arange(count), count * (part - 1) // of, count * part // of
        if not fold.endswith("/writers"):
            return torch.cat([rows[:start], rows[stop:]]), rows[start:stop]
        if writers is None:
            raise RunError(
                f"--fold {fold}: the training file does not say who wrote its digits (leave out "
                "/writers; docs/data.md says how MNIST's file gets them)"
            )
        inside = torch.from_numpy(_images_before(writers) * of // count == part - 1)
        return rows[~inside], rows[inside]
    parts: list[Subset[int]] = random_split(
        range(count),  # type: ignore[arg-type]  # only its length is used
        [0.9, 0.1],
        generator=torch.Generator().manual_seed(SPLIT_SEED),
    )
    return torch.tensor(parts[0].indices), torch.tensor(parts[1].indices)


def _images_before(writers: np.ndarray) -> np.ndarray:
    """Return for each image how many are by the writers before its own, in a random order."""
    _, numbers, counts = np.unique(writers, return_inverse=True, return_counts=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(counts))
    before = np.empty_like(counts)
    before[order] = np.cumsum(counts[order]) - counts[order]
    return before[numbers]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order (count,) of the images in an epoch, which follows from (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, ORDER))
    return torch.randperm(count, generator=generator)


def derive_seed(seed: int, epoch: int, purpose: int, rank: int = 0) -> int:
    """Return a seed below 2**63 of its own for each epoch, purpose and rank."""
    sequence = np.random.SeedSequence([seed, epoch, rank, purpose])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
