"""Targets of distillation: what several trained networks say about an image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Teachers:
    """Mixes the true classes with the mean probabilities of trained networks.

    The networks see the same augmented images as the one that learns from them (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent", arXiv:2106.05237), and
    their logits are not divided by a temperature.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.

    :param weight: share of the networks in the target, above 0 and up to 1.
    """

    def __init__(self, networks: Sequence[nn.Module], weight: float) -> None:
        self.networks = [network.eval() for network in networks]
        self.weight = weight

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the target probabilities (B, C) of images (B, 1, H, W) with classes (B,)."""
        logits = torch.stack([network(images) for network in self.networks])
        mean = logits.softmax(2).mean(0)
        truth = F.one_hot(classes, mean.shape[1])
        return torch.lerp(truth.to(mean.dtype), mean, self.weight)
