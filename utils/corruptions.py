"""Corruptions of test images: eight kinds in five strengths.

Lengths are in pixels of an image 28 pixels high, and scaled for others. What is random follows from
kind, strength and the number of the image.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.engine.augmentation import Augmenter

#: Kind -> what its strengths are, and the five of them.
CORRUPTIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "noise": ("standard deviation of normal noise", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "blur": ("standard deviation of a Gaussian, in pixels", (0.5, 1, 1.5, 2, 2.5)),
    "rotation": ("degrees, to either side", (10, 20, 30, 40, 50)),
    "shift": ("pixels, in a random direction", (1, 2, 3, 4, 5)),
    "thickness": ("pixels that bright parts grow on each side", (0.3, 0.6, 1, 1.5, 2)),
    "contrast": ("share of the contrast that is lost, toward gray", (0.3, 0.5, 0.65, 0.8, 0.9)),
    "occlusion": ("side of a gray square, in pixels", (4, 6, 8, 10, 12)),
    "elastic": ("standard deviation of displacements, in pixels", (0.5, 1, 1.5, 2, 2.5)),
}


def corrupt(images: Tensor, kind: str, level: int) -> Tensor:
    """Return corrupted copies of images (N, C, H, W) in [0, 1], in the same range.

    :param level: of the strength, from 0 to 4.
    """
    count, _, height, width = images.shape
    strength, pixel = CORRUPTIONS[kind][1][level], height / 28
    random = torch.Generator().manual_seed([*CORRUPTIONS].index(kind) * 5 + level)
    if kind == "noise":
        return (images + strength * torch.randn(images.shape, generator=random)).clamp(0, 1)
    if kind == "blur":
        return _blurred(images, strength * pixel)
    if kind == "thickness":
        return _thickened(images, strength * pixel)
    if kind == "contrast":
        return 0.5 + (images - 0.5) * (1 - strength)
    if kind == "occlusion":
        side = round(strength * pixel)
        top = torch.randint(height - side + 1, (count, 1, 1, 1), generator=random)
        left = torch.randint(width - side + 1, (count, 1, 1, 1), generator=random)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
        return torch.where(inside, 0.5, images)
    elastic = strength * pixel if kind == "elastic" else 0.0
    still = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}
    warp = Augmenter((height, width), images.device, **still, elastic=elastic, nodes=6)
    coefficients = warp.draw(count, random)
    angle = 2 * math.pi * torch.rand(count, generator=random)
    if kind == "shift":
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        coefficients[:, :, 2] = strength * pixel * direction * warp.pixel
    elif kind == "rotation":
        turned = math.radians(strength) * (angle - math.pi).sign()
        coefficients[:, 0, 0] = coefficients[:, 1, 1] = turned.cos()
        coefficients[:, 0, 1] = -turned.sin() * warp.aspect
        coefficients[:, 1, 0] = turned.sin() / warp.aspect
    return warp.transform(images, coefficients)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    radius = math.ceil(3 * deviation)
    weights = torch.exp(-((torch.arange(-radius, radius + 1) / deviation) ** 2) / 2)
    kernel = (weights / weights.sum()).view(1, 1, 1, -1)
    across = F.conv2d(images.flatten(0, 1).unsqueeze(1), kernel, padding=(0, radius))
    return F.conv2d(across, kernel.transpose(2, 3), padding=(radius, 0)).view_as(images)


def _thickened(images: Tensor, pixels: float) -> Tensor:
    """Dilate by a square of 3 x 3 for each pixel, for the last one in part."""
    for part in [1.0] * int(pixels) + [pixels % 1]:
        images = torch.lerp(images, F.max_pool2d(images, 3, stride=1, padding=1), part)
    return images
