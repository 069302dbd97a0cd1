"""Corruptions against SciPy and by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from utils.corruptions import CORRUPTIONS, corrupt

LEVELS = range(5)


def digit(height=28):
    """Return images (4, 1, H, W) of a bright, lopsided shape."""
    image = torch.zeros(4, 1, height, height)
    image[:, :, height // 4 : height // 2, height // 4 : 3 * height // 4] = 0.8
    image[:, :, height // 2 : 3 * height // 4, height // 4 : height // 3] = 1.0
    return image


@pytest.mark.parametrize("height", [28, 16])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_is_stronger_than_the_one_before(kind, height):
    images = digit(height)
    distances = []
    for level in LEVELS:
        found = corrupt(images, kind, level)
        assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
        assert torch.equal(found, corrupt(images, kind, level)) and not torch.equal(found, images)
        distances.append((found - images).square().sum().item())
    if kind != "occlusion":  # which may miss the digit
        assert distances == sorted(distances)
    assert torch.equal(images, digit(height))


@pytest.mark.parametrize("level", LEVELS)
def test_blur_and_thickness_agree_with_scipy(level):
    image = digit()[0, 0].numpy()
    sigma = CORRUPTIONS["blur"][1][level]
    expected = ndimage.gaussian_filter(
        image, sigma, mode="constant", radius=int(np.ceil(3 * sigma))
    )
    assert corrupt(digit(), "blur", level)[0, 0].numpy() == pytest.approx(expected, abs=1e-5)
    pixels = CORRUPTIONS["thickness"][1][level]
    expected = image
    for part in [1.0] * int(pixels) + [pixels % 1]:
        expected = expected + part * (ndimage.grey_dilation(expected, (3, 3)) - expected)
    assert corrupt(digit(), "thickness", level)[0, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_noise_contrast_and_occlusion_by_hand():
    gray = torch.full((500, 1, 28, 28), 0.5)
    for level, deviation in enumerate(CORRUPTIONS["noise"][1][:2]):  # larger ones are cut off
        assert corrupt(gray, "noise", level).std().item() == pytest.approx(deviation, rel=0.02)
    for level, lost in enumerate(CORRUPTIONS["contrast"][1]):
        found = corrupt(torch.eye(28).view(1, 1, 28, 28), "contrast", level)
        assert found.max() - found.min() == pytest.approx(1 - lost, abs=1e-6)
        assert (found.max() + found.min()) / 2 == pytest.approx(0.5, abs=1e-6)
    for level, side in enumerate(CORRUPTIONS["occlusion"][1]):
        found = corrupt(torch.ones(50, 1, 28, 28), "occlusion", level)
        assert ((found == 0.5).sum((1, 2, 3)) == side**2).all()
        assert len({tuple(each.nonzero()[0].tolist()) for each in found == 0.5}) > 20


@pytest.mark.parametrize("level", LEVELS)
def test_rotation_and_shift_move_a_dot(level):
    """A dot beside the center turns by the angle, and one in the center moves by the length."""
    degrees, pixels = (CORRUPTIONS[kind][1][level] for kind in ("rotation", "shift"))
    dot = torch.zeros(40, 1, 28, 28)
    dot[:, 0, 13:15, 21:23] = 1  # 8 pixels to the right of the middle, at 13.5
    places = centers(corrupt(dot, "rotation", level))
    angles = torch.rad2deg(torch.atan2(places[:, 0], places[:, 1]))
    assert angles.abs().numpy() == pytest.approx(np.full(40, degrees), abs=1.5)
    assert {-1.0, 1.0} == {*angles.sign().tolist()}
    middle = torch.zeros(40, 1, 28, 28)
    middle[:, 0, 13:15, 13:15] = 1
    moved = centers(corrupt(middle, "shift", level))
    assert moved.norm(dim=1).numpy() == pytest.approx(np.full(40, pixels), abs=0.1)
    assert moved[:, 0].min() < 0 < moved[:, 0].max()


def centers(images):
    """Return the center of mass of each image, from the middle: (N, 2), y and x."""
    places = torch.arange(28) - 13.5
    mass = images.sum((1, 2, 3))
    y = (images.sum(3) * places).sum((1, 2)) / mass
    return torch.stack([y, (images.sum(2) * places).sum((1, 2)) / mass], dim=1)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_channels_are_corrupted_alike(kind):
    gray, factors = digit(), torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    found = corrupt(gray * factors, kind, 2)
    assert found.shape == (4, 3, 28, 28)
    if kind not in ("noise", "contrast", "occlusion"):  # these are linear
        assert torch.allclose(found, corrupt(gray, kind, 2) * factors, atol=1e-6)
