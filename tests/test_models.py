"""Networks: logits against NumPy in float64, and the parameter names of earlier checkpoints."""

import numpy as np
import pytest
import torch
from torch import nn

from models.dmlp import DMLP
from models.smlp import SMLP
from models.wmlp import WMLP

NETWORKS = {
    "SMLP": (SMLP(), 0.0, [784, 77, 77, 77, 77, 6], [f"layer{n}" for n in range(1, 6)]),
    "WMLP": (WMLP(256, 7), 0.01, [256, 100, 100, 7], ["fc1", "fc2", "fc3"]),
    "DMLP": (DMLP(784, 4), 0.01, [784, 300, 300, 300, 4], ["net.0", "net.2", "net.4", "net.6"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_have_the_published_names_and_shapes(name):
    model, _, sizes, layers = NETWORKS[name]
    expected: dict[str, tuple[int, ...]] = {}
    for layer, inputs, outputs in zip(layers, sizes[:-1], sizes[1:], strict=True):
        expected[f"{layer}.weight"] = (outputs, inputs)
        expected[f"{layer}.bias"] = (outputs,)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_a_float64_computation(name):
    model, slope, sizes, layers = NETWORKS[name]
    side = int(sizes[0] ** 0.5)
    images = torch.rand(9, 1, side, side, generator=torch.Generator().manual_seed(0))
    x = images.numpy().reshape(9, -1).astype(np.float64)
    weights = {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    for layer in layers[:-1]:
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = np.where(x > 0, x, slope * x)
    x = x @ weights[f"{layers[-1]}.weight"].T + weights[f"{layers[-1]}.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), x, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images), model(images.flatten(1)))


def test_other_sizes_with_the_published_keywords():
    x = torch.rand(2, 256)
    assert SMLP(input_size=256, hidden_size=5, output_size=7)(x).shape == (2, 7)
    assert WMLP(input_dim=256, output_dim=3, hidden_dim=5, negative_slope=0.1)(x).shape == (2, 3)
    assert DMLP(input_dim=256, output_dim=2, hidden_dim=5, negative_slope=0.1)(x).shape == (2, 2)


def test_dmlp_initialization_is_kaiming_normal_with_zero_biases():
    torch.manual_seed(0)
    net = DMLP(784, 4).net
    for layer in (net[0], net[2], net[4]):
        assert isinstance(layer, nn.Linear)
        expected = (2 / (1 + 0.01**2) / layer.in_features) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.weight.abs().max() > 3 * expected  # a uniform distribution ends at 1.7
        assert torch.equal(layer.bias, torch.zeros(300))


@pytest.mark.parametrize("depth", [3, 4])
def test_smlp_depth_from_weights(depth):
    weights = SMLP(hidden_layers=depth).state_dict()
    assert SMLP.arguments_of(weights) == {"hidden_layers": depth}
    assert len(weights) == 2 * (depth + 1)
