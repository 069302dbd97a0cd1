"""Gradients of one process, and of ranks that divide a batch, against float64 autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from DJSW import pipelines
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE
from models.wmlp import WMLP
from utils.engine.backward import AutogradGradients, StackGradients, gradients_of
from utils.engine.optimizer import Adam
from utils.errors import UsageError


@pytest.mark.parametrize("batch", [64, 1])
@pytest.mark.parametrize("username", PEOPLE)
def test_gradients_equal_float64_autograd(username, batch):
    torch.manual_seed(0)
    dataset = pipelines.DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(username, PEOPLE[username].dataset)
    images = torch.rand(batch, 1, *dataset.image_size)
    classes = torch.randint(len(dataset.labels), (batch,))
    Adam(model, lr=0.1)
    double, _ = build_model(username, PEOPLE[username].dataset)
    double.double().load_state_dict(model.state_dict())
    model.eval(), double.eval()  # a network's own draws, such as dropout's, would differ
    expected = F.cross_entropy(double(images.double()), classes)
    expected.backward()
    other, _ = build_model(username, PEOPLE[username].dataset)
    other.eval().load_state_dict(model.state_dict())
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for network, gradients in ((model, gradients_of(model)), (other, AutogradGradients(other))):
        for _ in range(2):  # the second call overwrites the first's gradients
            loss_sum = gradients(images, classes, batch)
        assert loss_sum.item() / batch == pytest.approx(expected.item(), rel=1e-5)
        for mine, reference in zip(network.parameters(), double.parameters(), strict=True):
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


def test_networks_of_other_forms_use_autograd():
    model, _ = build_model("sigurd", "mnist_4_9")
    with pytest.raises(AssertionError, match="build the optimizer first"):
        gradients_of(model)
    Adam(model, lr=0.1)
    assert isinstance(gradients_of(model), StackGradients)
    assert isinstance(gradients_of(nn.Linear(2, 2)), AutogradGradients)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("username", PEOPLE)
def test_gradients_of_parts_add_up_to_those_of_the_batch(username, own, monkeypatch):
    """Batches of 64 and 5 divided by 8 ranks, against float64 autograd of whole batches."""
    torch.manual_seed(0)
    entry = DATASETS[PEOPLE[username].dataset]
    model, _ = build_model(username, PEOPLE[username].dataset)
    double = build_model(username, PEOPLE[username].dataset)[0].double()
    double.load_state_dict(model.state_dict())
    model.eval(), double.eval()  # a network's own draws, such as dropout's, would differ
    if not own:
        monkeypatch.delattr(type(model), "stack", raising=False)
    adam, gradients = Adam(model, lr=0.1), gradients_of(model)
    for count in (64, 5):
        images = torch.rand(count, 1, *entry.image_size)
        classes = torch.randint(len(entry.labels), (count,))
        loss, total = 0.0, torch.zeros_like(adam.gradients)
        for part, labels in zip(images.tensor_split(8), classes.tensor_split(8), strict=True):
            loss += gradients(part, labels, count).item()
            total += adam.gradients
        adam.gradients.copy_(total)
        expected = F.cross_entropy(double(images.double()), classes)
        double.zero_grad()
        expected.backward()
        assert loss / count == pytest.approx(expected.item(), rel=1e-6)
        for mine, theirs in zip(model.parameters(), double.parameters(), strict=True):
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)


def test_stack_must_compute_what_forward_computes():
    model, _ = build_model("waly", "usps_0_6")
    Adam(model, lr=0.1)
    assert isinstance(gradients_of(model), StackGradients)
    large, _ = build_model("sigurd", "mnist_4_9")
    for parameter in large.parameters():  # logits of 10⁶, which float32 rounds
        parameter.data *= 50
    Adam(large, lr=0.1)
    assert isinstance(gradients_of(large), StackGradients)

    class WithDropout(WMLP):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    dropping = WithDropout(256, 7)
    Adam(dropping, lr=0.1)
    with pytest.raises(UsageError, match=r"WithDropout: stack\(\) and forward\(\) differ by"):
        gradients_of(dropping.train())


@pytest.mark.parametrize(
    ("pixels", "hidden", "classes"), [(30, 17, 3), (16, 33, 26), (70, 77, 62), (5, 3, 2)]
)
def test_any_widths_equal_float64_autograd_and_padding_stays_zero(pixels, hidden, classes):
    """With both kinds of decay, over several steps; the checkpoint holds no padding."""
    for weight_decay in (0.0, 0.1):
        torch.manual_seed(pixels)
        model, double = (WMLP(pixels, classes, hidden) for _ in range(2))
        double.load_state_dict(model.state_dict())
        double.double()
        adam = Adam(model, lr=0.01, weight_decay=weight_decay)
        optimizer = torch.optim.AdamW if weight_decay else torch.optim.Adam
        reference = optimizer(double.parameters(), lr=0.01, weight_decay=weight_decay)
        gradients = gradients_of(model)
        assert isinstance(gradients, StackGradients)
        for _ in range(5):
            x, y = torch.rand(9, pixels), torch.randint(classes, (9,))
            gradients(x, y, 9)
            reference.zero_grad()
            F.cross_entropy(double(x.double()), y).backward()
            for mine, other in zip(model.parameters(), double.parameters(), strict=True):
                assert mine.grad is not None
                torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-3, atol=1e-6)
            adam.step()
            reference.step()
        for mine, other in zip(model.parameters(), double.parameters(), strict=True):
            torch.testing.assert_close(mine.double(), other, rtol=1e-3, atol=1e-5)
            assert not mine.detach().isnan().any()
        inside = sum(parameter.numel() for parameter in model.parameters())
        assert (hidden > 16 and hidden % 4 > 0) == (len(adam.values) > inside)
        for parameter in model.parameters():
            parameter.data.zero_()
            assert parameter.grad is not None
            parameter.grad.zero_()
        for tensor in (adam.values, adam.gradients):
            assert not tensor.any(), "the padding"
