"""WMLP, waly's network."""

from torch import Tensor, nn
from torch.nn import functional as F


class WMLP(nn.Module):
    """MLP with two hidden layers of ``hidden_dim`` units and LeakyReLU.

    >>> import torch
    >>> WMLP(256, 7)(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 7])
    """

    def __init__(
        self, input_dim: int, output_dim: int, hidden_dim: int = 100, negative_slope: float = 0.01
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, output_dim) for inputs (B, input_dim) or images (B, 1, H, W)."""
        x = F.leaky_relu(self.fc1(x.flatten(1)), self.negative_slope)
        x = F.leaky_relu(self.fc2(x), self.negative_slope)
        return self.fc3(x)  # type: ignore[no-any-return]

    def stack(self) -> tuple[list[nn.Linear], float]:
        """Return the linear layers in order and the negative slope of the activation."""
        return [self.fc1, self.fc2, self.fc3], self.negative_slope
