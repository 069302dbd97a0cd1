"""Adam over all parameters at once, as one flat tensor."""

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw


class Adam:
    """``torch.optim.AdamW`` with its default constants; without weight decay, ``torch.optim.Adam``.

    The parameters become views of one flat tensor, and their gradients of another, so that a step
    is one operation whatever the number of layers: 45 µs for SMLP instead of 460. It calls torch's
    functional form, since the constructor of ``torch.optim.Adam(fused=True)`` imports torch's
    compiler, which takes a second.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, algorithm 1.
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2.

    :ivar values: all parameters (P,).
    :ivar gradients: their gradients (P,).
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0) -> None:
        parameters = list(model.parameters())
        self.lr, self.weight_decay = lr, weight_decay
        self.values = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.steps = torch.zeros((), device=self.values.device)
        self.gradients = torch.zeros_like(self.values)
        self.mean = torch.zeros_like(self.values)
        self.square = torch.zeros_like(self.values)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, values, gradients in zip(
            parameters, self.values.split(sizes), self.gradients.split(sizes), strict=True
        ):
            parameter.data = values.view_as(parameter)
            parameter.grad = gradients.view_as(parameter)

    def step(self) -> None:
        """Update the parameters by their gradients."""
        update = adamw if self.weight_decay else adam  # which has less overhead
        update(
            [self.values],
            [self.gradients],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            fused=True,
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next steps depend on, besides the parameters."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
