"""The gradients of the cross-entropy of a batch, written into the parameters' ``grad``.

``gradients(images, targets, batch_size)`` takes images (B, 1, H, W) and their classes (B,), or the
probabilities of these (B, C): a batch of ``batch_size`` images, or one rank's part of it, which may
be empty. It writes the gradients of the sum of their losses divided by ``batch_size``, and returns
that sum.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.engine.optimizer import padded
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
    logits = model(x)
    difference = (logits - gradients.forward(x)[-1]).abs().max().item()
    if not difference < 1e-3 * max(1, logits.abs().max().item()):
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

    def __call__(self, images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Write the gradients; return the summed loss."""
        self.model.zero_grad(set_to_none=False)  # they are views of the optimizer's tensor
        if len(targets) == 0:  # many layers refuse a batch of nothing
            return images.new_zeros(())
        loss = F.cross_entropy(self.model(images), targets, reduction="sum")
        (loss / batch_size).backward()
        return loss.detach()


class StackGradients:
    """Gradients of linear layers with LeakyReLU between them (a negative slope of 0 is ReLU).

    With a layer's input a and logits z, g = dL/dz = (softmax(z) - target) / batch size; then, from
    the last layer to the first, dL/dW = gᵀ a, dL/db = Σ g, and the next g = (g W) · f'(a), where
    f'(a) is 1 for a > 0 and the slope otherwise: LeakyReLU keeps signs, so its output tells the
    sign of its input.
    """

    def __init__(self, layers: Sequence[nn.Linear], negative_slope: float) -> None:
        assert all(
            parameter.grad is not None for layer in layers for parameter in layer.parameters()
        ), "there are no gradients to write into: build the optimizer first"
        self.negative_slope = negative_slope
        self.weights, self.weight_gradients = _padded([layer.weight for layer in layers])
        self.biases, self.bias_gradients = _padded([layer.bias for layer in layers])
        # Images and logits have no padding.
        self.weights[0] = self.weights[0][:, : layers[0].in_features]
        self.weight_gradients[0] = self.weight_gradients[0][:, : layers[0].in_features]
        for tensors in (self.weights, self.weight_gradients, self.biases, self.bias_gradients):
            tensors[-1] = tensors[-1][: layers[-1].out_features]
        self.onehot = torch.eye(layers[-1].out_features, device=self.biases[-1].device)
        self.transposed = [weight.t() for weight in self.weights]
        self._memory: dict[int, tuple[list[Tensor], ...]] = {}

    def seed(self, seed: int) -> None:
        """Do nothing: linear layers draw no random numbers."""

    def memory(self, images: int) -> tuple[list[Tensor], ...]:
        """Return tensors for each layer's output, its gradient, and that transposed.

        They are used again for each batch of that size, since new memory takes longer than most
        operations here.
        """
        if images not in self._memory:
            outputs = [bias.new_empty(images, len(bias)) for bias in self.biases]
            gradients = [*map(torch.empty_like, outputs[:-1]), outputs[-1]]
            self._memory[images] = outputs, gradients, [each.t() for each in gradients]
        return self._memory[images]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input (B, pixels), the activations of the hidden layers, and the logits."""
        outputs = self.memory(len(x))[0]
        inputs = [x, *outputs[:-1]]
        for i, output in enumerate(outputs):
            torch.addmm(self.biases[i], inputs[i], self.transposed[i], out=output)
            if i < len(outputs) - 1:
                F.leaky_relu_(output, self.negative_slope)
        return [x, *outputs]

    def __call__(self, images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Write the gradients; return the summed loss."""
        *activations, logits = self.forward(images.flatten(1))
        log_probabilities = torch.log_softmax(logits, 1)
        if targets.is_floating_point():
            loss = (log_probabilities * targets).sum().neg_()
        else:
            loss = F.nll_loss(log_probabilities, targets, reduction="sum")
            targets = self.onehot[targets]
        _, gradients, transposed = self.memory(len(images))
        torch.exp(log_probabilities, out=logits).sub_(targets).div_(batch_size)
        for i in reversed(range(len(self.weights))):
            torch.mm(transposed[i], activations[i], out=self.weight_gradients[i])
            torch.sum(gradients[i], 0, out=self.bias_gradients[i])
            if i > 0:
                g = torch.mm(gradients[i], self.weights[i], out=gradients[i - 1])
                _leaky_relu_backward(g, activations[i], self.negative_slope, True, grad_input=g)
        return loss


_leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input


def _padded(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the values and the gradients of parameters, with padding."""
    gradients = [parameter.grad for parameter in parameters]
    return [*map(padded, parameters)], [padded(each) for each in gradients if each is not None]
