"""SMLP, sigurd's network."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn


class SMLP(nn.Module):
    """MLP with ``hidden_layers`` hidden layers of ``hidden_size`` units and ReLU.

    The layers are named ``layer1`` to ``layer{hidden_layers + 1}``, the output layer.

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
        """Return logits (B, output_size) for inputs (B, input_size) or images (B, 1, H, W)."""
        x = x.flatten(1)
        *hidden, output = self.children()
        for layer in hidden:
            x = layer(x).relu()
        return output(x)  # type: ignore[no-any-return]

    def stack(self) -> tuple[list[nn.Linear], float]:
        """Return the linear layers in order and the negative slope of the activation."""
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)], 0.0

    @staticmethod
    def arguments_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Return ``hidden_layers`` of a bare state dict: three in the group's earlier files."""
        layers = sum(name.startswith("layer") and name.endswith(".weight") for name in weights)
        return {"hidden_layers": layers - 1}
