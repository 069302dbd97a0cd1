"""The gradients of the cross-entropy of a batch, written into the parameters' ``grad``.

``gradients(images, classes, batch_size)`` takes images (B, 1, H, W) and classes (B,): a batch of
``batch_size`` images, or one rank's part of it, which may be empty. It writes the gradients of the
sum of their losses divided by ``batch_size``, and returns that sum.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UsageError


def gradients_of(model: nn.Module) -> "AutogradGradients | StackGradients":
    """Return closed-form gradients for a model that has ``stack()``, else those of autograd.

    Autograd costs a network this small as much as its matrix products.
    """
    stack: Callable[[], tuple[list[nn.Linear], float]] | None = getattr(model, "stack", None)
    if stack is None:
        return AutogradGradients(model)
    gradients = StackGradients(*stack())
    _require_same_logits(model, gradients)
    return gradients


@torch.no_grad()
def _require_same_logits(model: nn.Module, gradients: "StackGradients") -> None:
    """Compare ``forward()`` with ``stack()``, which replaces it in training, on one input.

    :raises UsageError: they differ, such as by dropout.
    """
    weight = gradients.weights[0]
    x = torch.linspace(0, 1, 3 * weight.shape[1], device=weight.device).view(3, -1)
    difference = (model(x) - gradients.forward(x)[-1]).abs().max().item()
    if not difference < 1e-3:
        raise UsageError(
            f"{type(model).__name__}: stack() and forward() differ by {difference:.3g} (remove "
            "stack() from a network with more than linear layers and LeakyReLU)"
        )


class AutogradGradients:
    """Gradients of any model, by autograd."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        on_cpu = all(parameter.is_cpu for parameter in model.parameters())
        # torch.manual_seed seeds every kind of device, which takes 75 µs.
        self._manual_seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed

    def seed(self, seed: int) -> None:
        """Seed what the model draws itself in the next step, such as dropout."""
        self._manual_seed(seed)

    def __call__(self, images: Tensor, classes: Tensor, batch_size: int) -> Tensor:
        """Write the gradients; return the summed loss."""
        self.model.zero_grad(set_to_none=False)  # they are views of the optimizer's tensor
        if len(classes) == 0:  # many layers refuse a batch of nothing
            return images.new_zeros(())
        loss = F.cross_entropy(self.model(images), classes, reduction="sum")
        (loss / batch_size).backward()
        return loss.detach()


class StackGradients:
    """Gradients of linear layers with LeakyReLU between them (a negative slope of 0 is ReLU).

    With a layer's input a and logits z, g = dL/dz = (softmax(z) - onehot) / batch size; then, from
    the last layer to the first, dL/dW = gᵀ a, dL/db = Σ g, and the next g = (g W) · f'(a), where
    f'(a) is 1 for a > 0 and the slope otherwise: LeakyReLU keeps signs, so its output tells the
    sign of its input.
    """

    def __init__(self, layers: Sequence[nn.Linear], negative_slope: float) -> None:
        assert all(
            parameter.grad is not None for layer in layers for parameter in layer.parameters()
        ), "there are no gradients to write into: build the optimizer first"
        self.negative_slope = negative_slope
        self.weights = [layer.weight.detach() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]
        self.weight_gradients = [layer.weight.grad for layer in layers]
        self.bias_gradients = [layer.bias.grad for layer in layers]
        self.onehot = torch.eye(len(self.biases[-1]), device=self.biases[-1].device)

    def seed(self, seed: int) -> None:
        """Do nothing: linear layers draw no random numbers."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input (B, pixels), the activations of the hidden layers, and the logits."""
        outputs = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.leaky_relu_(torch.addmm(bias, x, weight.t()), self.negative_slope)
            outputs.append(x)
        return [*outputs, torch.addmm(self.biases[-1], x, self.weights[-1].t())]

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Tensor, batch_size: int) -> Tensor:
        """Write the gradients; return the summed loss."""
        *activations, logits = self.forward(images.flatten(1))
        log_probabilities = torch.log_softmax(logits, 1)
        loss = F.nll_loss(log_probabilities, classes, reduction="sum")
        g = log_probabilities.exp_().sub_(self.onehot[classes]).div_(batch_size)
        for i in reversed(range(len(self.weights))):
            torch.mm(g.t(), activations[i], out=self.weight_gradients[i])
            torch.sum(g, 0, out=self.bias_gradients[i])
            if i > 0:
                g = torch.ops.aten.leaky_relu_backward(
                    g @ self.weights[i], activations[i], self.negative_slope, True
                )
        return loss
