"""Gradients against float64 autograd, of one process and of several that share a batch."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from DJSW import pipelines
from DJSW.pipelines import DATASETS, PEOPLE, build_model
from utils import ranks
from utils.adam import Adam
from utils.gradients import AutogradGradients, SharedGradients, StackGradients, gradients_of


@pytest.mark.parametrize("batch", [64, 1])
@pytest.mark.parametrize("username", PEOPLE)
def test_gradients_equal_float64_autograd(username, batch):
    torch.manual_seed(0)
    dataset = pipelines.DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(username, PEOPLE[username].dataset)
    images = torch.rand(batch, 1, *dataset.image_size)
    classes = torch.randint(len(dataset.digits), (batch,))
    Adam(model, lr=0.1)
    double, _ = build_model(username, PEOPLE[username].dataset)
    double.double().load_state_dict(model.state_dict())
    model.eval(), double.eval()  # a network's own draws, such as dropout's, would differ
    expected = F.cross_entropy(double(images.double()), classes)
    expected.backward()
    for gradients in (gradients_of(model), AutogradGradients(model)):
        for _ in range(2):  # the second time, what was there is overwritten
            loss_sum = gradients(images, classes)
        assert loss_sum.item() / batch == pytest.approx(expected.item(), rel=1e-5)
        for mine, other in zip(model.parameters(), double.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-7)


def test_networks_that_are_no_stack_are_left_to_autograd():
    model, _ = build_model("sigurd", "mnist_4_9")
    with pytest.raises(AssertionError, match="build the optimizer first"):
        gradients_of(model)
    Adam(model, lr=0.1)
    assert isinstance(gradients_of(model), StackGradients)
    assert isinstance(gradients_of(nn.Linear(2, 2)), AutogradGradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_torchs(smoothing):
    torch.manual_seed(0)
    model, _ = build_model("waly", "usps_0_6")
    images, classes = torch.rand(9, 1, 16, 16), torch.arange(9) % 7
    expected = F.cross_entropy(model(images), classes, label_smoothing=smoothing)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    Adam(model, lr=0.1)
    for ours in (StackGradients(*model.stack(), smoothing), AutogradGradients(model, smoothing)):
        assert ours(images, classes).item() == pytest.approx(9 * expected.item(), rel=1e-5)
        for parameter, wanted in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, wanted, atol=1e-6)


@pytest.fixture
def images():
    """Smooth blobs, so that another interpolation gives nearly the same."""
    noise = np.random.default_rng(0).random((6, 28, 28))
    noise[:, :6] = noise[:, -6:] = noise[:, :, :6] = noise[:, :, -6:] = 0
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2))).float()[:, None] * 4


@pytest.mark.parametrize("username", PEOPLE)
def test_shared_gradients_are_those_of_the_batch(monkeypatch, username):
    """Of batches of 64 and 5 that 8 ranks divide, against float64 autograd of the whole."""
    torch.manual_seed(0)
    entry = DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(username, PEOPLE[username].dataset)
    double = build_model(username, PEOPLE[username].dataset)[0].double()
    double.load_state_dict(model.state_dict())
    model.eval(), double.eval()  # a network's own draws, such as dropout's, would differ
    adam = Adam(model, lr=0.1)
    shared = SharedGradients(gradients_of(model), adam.gradients)
    for count in (64, 5):
        images = torch.rand(count, 1, *entry.image_size)
        classes = torch.randint(len(entry.digits), (count,))
        messages = []
        monkeypatch.setattr(ranks, "add_up", messages.append)
        for part, labels in zip(images.tensor_split(8), classes.tensor_split(8), strict=True):
            shared(part, labels)
        total = sum(messages)
        monkeypatch.setattr(ranks, "add_up", partial(torch.Tensor.copy_, other=total))
        loss = shared(part, labels)
        expected = F.cross_entropy(double(images.double()), classes)
        double.zero_grad()
        expected.backward()
        assert loss.item() / count == pytest.approx(expected.item(), rel=1e-6)
        for mine, theirs in zip(model.parameters(), double.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)
