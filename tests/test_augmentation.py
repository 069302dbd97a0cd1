"""Augmented images against SciPy's."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from DJSW.recipes import Augmentation
from utils.engine.augmentation import Augmenter

CPU = torch.device("cpu")
STILL: dict[str, Any] = dict(rotation=0, scale=0, shear=0, shift=0, elastic=0, nodes=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    """Smooth blobs, for which different interpolations give nearly the same."""
    noise = np.random.default_rng(0).random((6, 28, 28))
    noise[:, :6] = noise[:, -6:] = noise[:, :, :6] = noise[:, :, -6:] = 0
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2))).float()[:, None] * 4


def test_augmentation_by_zero_changes_nothing(images):
    augmenter = Augmenter((28, 28), CPU, **STILL)
    assert torch.allclose(
        augmenter.transform(images, augmenter.draw(6, generator())), images, atol=1e-6
    )


@pytest.mark.parametrize("width", [28, 20])
@pytest.mark.parametrize("what", ["rotation", "scale", "shear", "shift"])
def test_affine_part_equals_scipys(images, what, width):
    """Apply the drawn map, in pixels, with ``scipy.ndimage.affine_transform``."""
    amount = {"rotation": 20, "scale": 0.2, "shear": 0.3, "shift": 3}[what]
    images = images[..., :width]
    augmenter = Augmenter((28, width), CPU, **{**STILL, what: amount})
    drawn = augmenter.draw(6, generator())
    found = augmenter.transform(images, drawn)
    for image, result, coefficients in zip(images, found, drawn.double(), strict=True):
        (xx, xy, x0), (yx, yy, y0) = coefficients[:, :3].tolist()
        xy, yx, x0, y0 = xy * width / 28, yx * 28 / width, x0 * width / 2, y0 * 14
        matrix = np.array([[yy, yx], [xy, xx]])  # SciPy's order is (y, x)
        center = np.array([27, width - 1]) / 2
        offset = center - matrix @ center + np.array([y0, x0])
        expected = ndimage.affine_transform(
            image[0].numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert np.abs(result[0].numpy() - expected).max() < 1e-4
        moved = np.array([[xx, xy], [yx, yy]])
        if what == "rotation":
            assert np.allclose(moved @ moved.T, np.eye(2), atol=1e-6)
            assert abs(math.degrees(math.atan2(yx, xx))) <= 20
        if what == "scale":
            assert 0.8 <= xx <= 1.2 and 0.8 <= yy <= 1.2 and xy == yx == 0
        if what == "shear":
            assert abs(xy) <= 0.3 + 1e-6 and (xx, yx, yy) == (1, 0, 1)
        if what == "shift":
            assert max(abs(x0), abs(y0)) <= 3 + 1e-6 and np.array_equal(moved, np.eye(2))


@pytest.mark.parametrize("size", [(28, 28), (16, 16), (20, 30)])
def test_elastic_part_has_the_given_spread_and_is_smooth(size):
    augmenter = Augmenter(size, CPU, **{**STILL, "elastic": 1.5, "nodes": 5})
    drawn = augmenter.draw(4000, generator())[:, :, 3:] @ augmenter.fields[3:]
    in_pixels = (drawn / augmenter.pixel[:, None]).view(4000, 2, *size)
    spread = in_pixels.std(0)
    assert spread.min() > 1.4 and spread.max() < 1.6  # everywhere, in both directions
    steps = in_pixels.diff(dim=3).std()
    assert steps < 1.5 * 2 / (size[1] / 4)  # a fraction of the difference of random neighbors


def test_augmentation_depends_on_the_seed(images):
    augmenter = Augmenter((28, 28), CPU, **asdict(Augmentation(9, 0.07, 0.1, 1, 0.8, 6)))
    before = images.clone()
    first, same = (augmenter(images, 6, 1) for _ in range(2))
    other = augmenter(images, 6, 2)
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=0.01)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert first.min() >= 0 and first.max() <= images.max()
    assert torch.equal(images, before)
