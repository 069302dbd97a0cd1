"""DMLP, dennis's network."""

from torch import Tensor, nn


class DMLP(nn.Module):
    """MLP with three hidden layers of ``hidden_dim`` units and LeakyReLU.

    Weights start Kaiming-normal (He et al. 2015, arXiv:1502.01852), biases at zero.

    >>> import torch
    >>> DMLP(784, 4)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, input_dim: int, output_dim: int, hidden_dim: int = 300, negative_slope: float = 0.01
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.net = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            nn.LeakyReLU(negative_slope),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LeakyReLU(negative_slope),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LeakyReLU(negative_slope),
            nn.Linear(hidden_dim, output_dim),
        )
        for layer in self.stack()[0]:
            nn.init.kaiming_normal_(layer.weight, a=negative_slope, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, output_dim) for inputs (B, input_dim) or images (B, 1, H, W)."""
        return self.net(x.flatten(1))  # type: ignore[no-any-return]

    def stack(self) -> tuple[list[nn.Linear], float]:
        """Return the linear layers in order and the negative slope of the activation."""
        return [layer for layer in self.net if isinstance(layer, nn.Linear)], self.negative_slope
