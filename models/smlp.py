"""SMLP: sigurd's network."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class SMLP(nn.Module):
    """ReLU network with ``hidden_layers`` layers of ``hidden_size`` units.

    The layers are ``layer1`` (the first hidden one) to ``layer{hidden_layers + 1}`` (the output).

    >>> import torch
    >>> SMLP()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 6])
    """

    def __init__(
        self,
        input_size: int = 784,
        hidden_size: int = 77,
        output_size: int = 6,
        hidden_layers: int = 4,
    ) -> None:
        super().__init__()
        sizes = [input_size, *[hidden_size] * hidden_layers, output_size]
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"layer{number}", nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_size) of (B, input_size), or of images (B, 1, H, W)."""
        x = x.flatten(1)
        *hidden, output = self.children()
        for layer in hidden:
            x = F.relu(layer(x))
        return output(x)  # type: ignore[no-any-return]

    def stack(self) -> tuple[list[nn.Linear], float]:
        """The layers in order, and the slope of ReLU for negative values."""
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)], 0.0

    @staticmethod
    def arguments_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The depth that a bare state dict was saved with.

        The group's earlier files have three hidden layers (``layer1`` to ``layer4``).
        """
        layers = sum(name.startswith("layer") and name.endswith(".weight") for name in weights)
        return {"hidden_layers": layers - 1}
