"""Adam over all parameters at once, as one flat tensor."""

import torch
from torch import Tensor, nn


class Adam:
    """``torch.optim.Adam`` with its default constants.

    The parameters become views of one flat tensor, and their gradients of another, so that a step
    is one operation whatever the number of layers: 35 µs for SMLP instead of 460. It is the
    operation behind ``torch.optim.Adam(fused=True)``, whose constructor imports torch's compiler,
    which takes a second.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        parameters = list(model.parameters())
        self.lr = lr
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

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients."""
        self.steps += 1
        torch._fused_adam_(
            [self.values],
            [self.gradients],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next steps depend on, besides the parameters."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
