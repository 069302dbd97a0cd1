"""Adam on flat tensors, against torch's optimizers."""

import pytest
import torch
from torch import nn

from DJSW.networks import build_model
from DJSW.pipelines import PEOPLE
from utils.engine.optimizer import Adam


@pytest.mark.parametrize("username", PEOPLE)
def test_adam_takes_the_steps_of_torch(username):
    (ours, _), (theirs, _) = (build_model(username, PEOPLE[username].dataset) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    adam = Adam(ours, lr=0.01)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            mine.grad.copy_(torch.randn(mine.shape, generator=generator))
            other.grad = mine.grad.clone()
        adam.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_adam_resumes_from_its_state():
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (Adam(model, lr=0.1) for model in models)
    first.gradients.fill_(0.5)
    first.step()
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    for adam in (first, second):
        adam.gradients.fill_(-0.3)
        adam.step()
    assert torch.equal(first.values, second.values)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weight_decay_is_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    adam = Adam(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, weight_decay=0.1, foreach=False, fused=False
    )
    for step in range(20):
        x = torch.randn(8, 5, generator=generator(step))
        for model in (ours, theirs):
            model.zero_grad(set_to_none=False)
            model(x).square().sum().backward()
        adam.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)
