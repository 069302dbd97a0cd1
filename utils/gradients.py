"""The gradients of the mean cross-entropy of a batch, written into the parameters' ``grad``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import ranks

#: Takes images (B, 1, H, W) and classes (B,); returns the sum of their losses.
Gradients = Callable[[Tensor, Tensor], Tensor]


def gradients_of(
    model: nn.Module, label_smoothing: float = 0.0
) -> "AutogradGradients | StackGradients":
    """By hand for a network that says it is a stack (``model.stack()``), else by autograd.

    Autograd costs a network this small as much as its matrix products.

    :param label_smoothing: share of each label that is spread over all classes.
    """
    stack: Callable[[], tuple[list[nn.Linear], float]] | None = getattr(model, "stack", None)
    if stack is None:
        return AutogradGradients(model, label_smoothing)
    return StackGradients(*stack(), label_smoothing)


class SharedGradients:
    """Of a batch that the ranks have divided among themselves, of the same bits on each of them.

    :param flat: all gradients as one tensor, of which those of the parameters are views.
    """

    def __init__(self, gradients: Gradients, flat: Tensor) -> None:
        self.gradients = gradients
        self.flat = flat

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        count = len(classes)
        if count:
            loss = self.gradients(images, classes)
        else:  # the batch has fewer images than there are ranks
            loss = self.flat.zero_().sum()
        sums = torch.cat([self.flat * count, loss.view(1), loss.new_full((1,), count)])
        ranks.add_up(sums)
        torch.div(sums[:-2], sums[-1], out=self.flat)
        return sums[-2]


class AutogradGradients:
    """For any network."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        self.model, self.label_smoothing = model, label_smoothing

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        self.model.zero_grad(set_to_none=False)  # the optimizer's gradients are views: kept
        logits = self.model(images)
        loss = F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
        loss.backward()
        return loss.detach() * len(classes)


class StackGradients:
    """For linear layers with LeakyReLU between them (a negative slope of 0 is ReLU).

    With a layer's input a and logits z, it begins with g = dL/dz = (softmax(z) - target) / B, where
    a target is one-hot, or smoothed; then,
    layer by layer, dL/dW = gᵀ a, dL/db = Σ g, and the next g = (g W) · f'(a), where f'(a) is 1 for
    a > 0 and else the slope: LeakyReLU keeps signs, so its result tells what its argument was.
    """

    def __init__(
        self, layers: Sequence[nn.Linear], negative_slope: float, label_smoothing: float = 0.0
    ) -> None:
        assert all(
            parameter.grad is not None for layer in layers for parameter in layer.parameters()
        ), "there are no gradients yet to write into: build the optimizer first"
        self.negative_slope = negative_slope
        self.weights = [layer.weight.detach() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]
        self.weight_gradients = [layer.weight.grad for layer in layers]
        self.bias_gradients = [layer.bias.grad for layer in layers]
        classes = len(self.biases[-1])
        onehot = torch.eye(classes, device=self.biases[-1].device)
        self.label_smoothing = label_smoothing
        self.targets = onehot * (1 - label_smoothing) + label_smoothing / classes

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        x = images.flatten(1)
        activations = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.leaky_relu_(torch.addmm(bias, x, weight.t()), self.negative_slope)
            activations.append(x)
        logits = torch.addmm(self.biases[-1], x, self.weights[-1].t())
        log_probabilities = torch.log_softmax(logits, 1)
        targets = self.targets[classes]
        if self.label_smoothing:
            loss = -(targets * log_probabilities).sum()
        else:
            loss = F.nll_loss(log_probabilities, classes, reduction="sum")
        g = log_probabilities.exp_().sub_(targets).div_(len(classes))
        for i in reversed(range(len(self.weights))):
            torch.mm(g.t(), activations[i], out=self.weight_gradients[i])
            torch.sum(g, 0, out=self.bias_gradients[i])
            if i > 0:
                g = torch.ops.aten.leaky_relu_backward(
                    g @ self.weights[i], activations[i], self.negative_slope, True
                )
        return loss
