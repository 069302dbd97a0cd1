"""Pictures of handwriting, made into what a network was trained on.

MNIST's digits were black on white, scaled to fit 20 x 20 pixels with their proportions kept, and
placed in 28 x 28 so that their centre of mass is at pixel (14, 14) (LeCun et al., 1998, section
III.A; measured on the training file: 13.99 and 14.00). USPS's fill 16 x 16, their boxes in the
middle.
"""

import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

#: Longer side in pixels at which a picture is looked at: a digit that takes up a tenth of a photo
#: still has more pixels than the network sees.
WORKING_SIZE = 512
#: Ink is what stands out by so much of the picture's range from black to white; paper's grain, dust
#: and JPEG's traces do not.
CONTRAST = 0.1
#: Of the largest connected piece of ink; smaller pieces are specks.
SPECK = 0.05
#: Strokes thinner than this, in pixels of the network's image, are thickened. Median of MNIST: 2.9
#: to 3.2, of USPS: 2.8; their thinnest twentieth is below 2.2.
STROKE = 2.2


class NotADigit(Exception):
    """Why a file cannot be predicted."""


class Form(Protocol):
    """The form of a dataset's images, as its entry in the table of datasets has it."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def digit_size(self) -> int: ...
    @property
    def centred(self) -> str: ...


def read_image(path: Path) -> np.ndarray:
    """Gray values (H, W) float32, 0 black to 1 white, turned as the camera says.

    :raises NotADigit: it is no image, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # photos of 100 megapixels are fine
            with Image.open(path) as image:
                image.draft("L", (4 * WORKING_SIZE, 4 * WORKING_SIZE))  # no need of all of a JPEG
                return _gray(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise NotADigit("no image, or of an unknown kind") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise NotADigit(f"a damaged or too large image ({error})") from None


def _gray(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16 bits and more, of which "L" would keep the lowest 8
        values = np.asarray(image, dtype=np.float32)
        return values / np.float32(65535 if image.mode.startswith("I") else max(1, values.max()))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return _scaled(image.convert("L"))
    gray, alpha = np.moveaxis(_scaled(image.convert("RGBA").convert("LA")), 2, 0)
    # What is see-through shows white under dark ink, and black under bright ink.
    ink = np.average(gray, weights=alpha) if alpha.any() else 0.0
    mixed: np.ndarray = gray * alpha + (1 - alpha) * np.float32(ink < 0.5)
    return mixed


def _scaled(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def as_trained(gray: np.ndarray, form: Form) -> np.ndarray:
    """The digit of a picture (H, W) in the form of the data: float32 in [0, 1], white on black.

    :raises NotADigit: nothing stands out from the background.
    """
    # Twice: a digit that is small on its page is looked at again, closer.
    ink = _ink(_reduced(_around(_ink(_reduced(gray)), gray)))
    ink = _thickened(ink[_box(ink)], form)
    height, width = ink.shape
    scale = form.digit_size / max(height, width)
    # Pillow averages over all the pixels that one is made of.
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR)
    digit = np.asarray(small, dtype=np.float32).clip(0, 1)
    return _placed(digit / digit.max(), form)


def _reduced(gray: np.ndarray) -> np.ndarray:
    """At most WORKING_SIZE pixels long."""
    image = Image.fromarray(gray)
    image.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _ink(gray: np.ndarray) -> np.ndarray:
    """How much of each pixel is ink, 0 to 1, whichever of ink and paper is the darker."""
    # Grain of single pixels goes; strokes are at least a few pixels wide, unless all is small.
    smooth = ndimage.gaussian_filter(gray, max(gray.shape) / 256)
    difference = smooth - _background(smooth)
    bright = np.square(difference.clip(0)).sum() > np.square(difference.clip(max=0)).sum()
    ink: np.ndarray = (difference if bright else -difference).clip(0)
    if ink.max() < CONTRAST:
        raise NotADigit("nothing in it stands out from the background")
    threshold = _otsu(ink)
    full = float(np.median(ink[ink > threshold]))
    kept = _without_specks(ink > threshold)
    # Paper is 0 up to a quarter of full ink; from three quarters on it is full.
    soft: np.ndarray = ((ink / full - 0.25) / 0.5).clip(0, 1)
    digit: np.ndarray = soft * ndimage.binary_dilation(kept, iterations=2)
    return digit


def _background(gray: np.ndarray) -> np.ndarray:
    """The paper, shadows included: the smooth surface of second degree through the edge pixels.

    Strokes that reach the edge are outliers, and left out.
    """
    height, width = gray.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    edge = np.ones_like(gray, dtype=bool)
    margin = max(1, min(height, width) // 50)
    edge[margin:-margin, margin:-margin] = False
    of_edge, values = terms[edge], gray[edge]
    inlier = np.abs(values - np.median(values)) < 0.25
    for _ in range(3):
        surface = np.linalg.lstsq(of_edge[inlier], values[inlier], rcond=None)[0]
        rest = np.abs(values - of_edge @ surface)
        inlier = rest <= max(3 * float(np.median(rest)), 0.02)
    fitted: np.ndarray = terms @ surface
    return fitted


def _otsu(values: np.ndarray) -> float:
    """The threshold between two classes that are most unlike (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = counts.sum() - below
    sums = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[np.nanargmax(between[:-1])])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes >= SPECK * sizes.max())[labels] & mask
    return kept


def _box(ink: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _around(ink: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """The part of a picture where its ink was found, with as much paper at each side as makes its
    edge."""
    rows, columns = _box(ink)
    scale = max(gray.shape) / max(ink.shape)
    margin = 0.3 * max(rows.stop - rows.start, columns.stop - columns.start)
    top, left = (max(0, int((side.start - margin) * scale)) for side in (rows, columns))
    bottom, right = (int((side.stop + margin) * scale) + 1 for side in (rows, columns))
    return gray[top:bottom, left:right]


def _thickened(ink: np.ndarray, form: Form) -> np.ndarray:
    """Strokes at least as thick, compared to the digit, as those of the data."""
    # A strip of width w has a mean distance of w / 4 from its edge.
    depth = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    stroke = 4 * depth[depth > 0].mean()
    wanted = STROKE * max(ink.shape) / form.digit_size
    radius = round((wanted - stroke) / 2)
    if radius < 1:
        return ink
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = x * x + y * y <= radius * radius
    thick: np.ndarray = ndimage.grey_dilation(np.pad(ink, radius), footprint=disc)
    return thick


def _placed(digit: np.ndarray, form: Form) -> np.ndarray:
    """In the middle of the frame, moved by whole pixels, and never over its edge."""
    height, width = digit.shape
    frame = np.zeros(form.image_size, np.float32)
    if form.centred == "mass":
        y, x = (size // 2 - centre for size, centre in zip(frame.shape, _mass(digit), strict=True))
    else:
        y, x = (frame.shape[0] - height) / 2, (frame.shape[1] - width) / 2
    top = min(max(round(y), 0), frame.shape[0] - height)
    left = min(max(round(x), 0), frame.shape[1] - width)
    frame[top : top + height, left : left + width] = digit
    return frame


def _mass(digit: np.ndarray) -> tuple[float, float]:
    y, x = ndimage.center_of_mass(digit)
    return float(y), float(x)


def as_given(gray: np.ndarray, form: Form) -> np.ndarray:
    """An image that is in the form of the data already.

    :raises NotADigit: it has another size.
    """
    if gray.shape != form.image_size:
        height, width = form.image_size
        raise NotADigit(
            f"{gray.shape[1]} x {gray.shape[0]} pixels, where the data have {width} x {height}; "
            "without --raw it is prepared"
        )
    return gray
