"""Convert pictures of handwritten digits to the format of a dataset.

MNIST digits fit 20 x 20 pixels with their proportions kept, in 28 x 28 with the center of mass at
pixel (14, 14) (LeCun et al., 1998, section III.A; mean over the training file: 13.99 and 14.00).
USPS digits fill 16 x 16, with the bounding box centered.
"""

import io
import os
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

WORKING_SIZE = 512  #: longer side at which ink is searched, unless the shorter would be below this
NARROW = 128
CONTRAST, NOISE = 0.04, 6  #: least contrast of ink, and its ratio to the noise of the paper
LARGEST = 0.7  #: longest straight part of a digit, as a share of a picture's longer side
SPECK = 0.05  #: least size of a piece of ink, as a share of the largest one
GAP = 0.25  #: widest gap within a digit, as a share of its longer side; the bar of a 5 is closer
OVERLAP = 0.1  #: what pieces beside each other may share of their columns, as in slanted writing
LEAST = 0.3  #: length of what may be a digit beside a larger one, as a share of that one's
WIDEST = 2.1  #: ratio of a digit's width to its height; 2.05 in the widest of 8000 of MNIST
#: Two digits that touch: their width, the stroke between them, and the height of either, as shares
#: of the height.
NARROWEST, NECK, HIGH = 1.05, 0.7, 0.92
STROKE = 2.2  #: least stroke width in output pixels; 5 % of MNIST and USPS have less, median 3
#: Most megapixels: phones make 50, and 200 as JPEG, which is decoded at a reduced size.
MEGAPIXELS, JPEG_MEGAPIXELS = 50, 200
SECONDS = 5  #: longest time to decode a picture; 200 megapixels take 2
#: What phones, scanners and drawing programs write; Pillow's other decoders, of which one starts
#: Ghostscript, do not see a file.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
FINE = 10  #: pixels per output pixel at which strokes are thickened

Image.MAX_IMAGE_PIXELS = None  # the limits above stand instead


class UnreadableImage(Exception):
    """The reason why a picture cannot be predicted."""


class Form(Protocol):
    """Form of a dataset's images, as in ``DJSW.pipelines.DATASETS``."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def digit_size(self) -> int: ...
    @property
    def centered(self) -> str: ...


def read_image(path: Path, *, color: bool = True) -> np.ndarray:
    """Return the gray values (H, W), float32 in [0, 1], rotated as the EXIF data say.

    :param color: whether a picture in color is converted.
    :raises UnreadableImage: the file is not an image, is damaged or too large, holds several
        images, or is in color.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImage("a pipe or a device (give a file)")
        with (
            warnings.catch_warnings(action="ignore"),
            _silent_stderr(),
            _Timed(path) as file,
            Image.open(file, formats=FORMATS) as unchecked,
        ):
            unchecked.verify()  # checksums of a PNG, which decoding does not look at
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            is_jpeg = image.format in ("JPEG", "MPO")
            most = JPEG_MEGAPIXELS if is_jpeg else MEGAPIXELS
            if image.width * image.height > most * 10**6:
                size = f"{image.width} x {image.height} pixels are more than {most} megapixels"
                raise UnreadableImage(f"{size} (reduce it)")
            # Some phones save a photo and its preview as MPO.
            if getattr(image, "is_animated", False) and not is_jpeg:
                raise UnreadableImage("several images in one file (give one image per file)")
            image.draft("RGB", (4 * WORKING_SIZE, 4 * WORKING_SIZE))  # decodes JPEG faster
            image.decodermaxblock = 512  # bytes, of which 50 scans of a JPEG take seconds
            ImageOps.exif_transpose(image, in_place=True)
            channels = () if color else np.asarray(image.convert("RGB"), int)
            if not color and np.ptp(channels, axis=-1).max() > 8:  # JPEG rounds
                raise UnreadableImage("in color: the dataset is gray (convert it)")
            return _to_gray(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(
            "not an image, or of an unknown format (save HEIC and PDF as JPEG or PNG)"
        ) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = getattr(error, "strerror", None) or f"damaged or too large image ({error})"
        raise UnreadableImage(reason) from None


class _Timed(io.FileIO):
    """A file that is read for ``SECONDS`` at most: a JPEG may have any number of scans."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.end = time.monotonic() + SECONDS

    def read(self, size: int | None = -1) -> bytes:
        if time.monotonic() > self.end:
            raise UnreadableImage(f"takes more than {SECONDS} s to decode (reduce it)")
        return super().read(-1 if size is None else size)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what libtiff writes to the terminal itself from it during the block."""
    with open(os.devnull, "wb") as null, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)


def _to_gray(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # integers of 16 bits and more, or floats
        gray = np.asarray(image, dtype=np.float32)
        if not (np.isfinite(gray).all() and gray.min() >= 0):
            raise UnreadableImage("pixel values that are negative or not finite")
        # Scanners write 12 bits, and others 8, into files of more.
        white = next((top for top in (1, 255, 4095, 65535) if gray.max() <= top), gray.max())
        return gray / np.float32(white)
    if "A" in image.getbands() or "transparency" in image.info:
        gray_image, alpha = image.convert("RGBA").convert("LA").split()
        # Transparent pixels become white under dark ink and black under bright ink.
        ink = np.average(np.asarray(gray_image), weights=np.asarray(alpha) + 1e-9)
        image = Image.composite(gray_image, Image.new("L", image.size, 255 * int(ink < 128)), alpha)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    image = image if image.mode == "RGB" else image.convert("RGB")
    colors = np.array(image, dtype=np.float32)
    colors /= 255  # in place: 50 megapixels take 600 MB
    # The first principal component: in plain gray, green on red of equal brightness would vanish.
    step = max(1, max(image.size) // 200)
    sample = colors[::step, ::step].reshape(-1, 3)
    axis = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][0]
    axis *= (np.sign(axis.sum()) or 1) / np.abs(axis).sum()
    return np.asarray(colors @ axis - axis.clip(max=0).sum())  # from 0 to 1


def check_prepared(gray: np.ndarray, form: Form) -> np.ndarray:
    """Return ``gray`` (H, W), checked to be in the dataset's form already.

    :raises UnreadableImage: it has another size or is black on white.
    """
    height, width = form.image_size
    remedy = "(leave out --raw to convert it)" if form.digit_size else "(resize it)"
    if gray.shape != (height, width):
        size = f"{gray.shape[1]} x {gray.shape[0]} pixels"
        raise UnreadableImage(f"{size}: the dataset has {width} x {height} {remedy}")
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    # True of no digit of MNIST or USPS.
    if form.digit_size and gray.mean() > 0.5 and np.median(edge) > 0.5:
        raise UnreadableImage(f"black on white: the dataset is white on black {remedy}")
    return gray


def prepare_image(gray: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits in a picture (H, W), from left to right, and where they are.

    :return: images (N, H, W) in the dataset's form, float32 in [0, 1]; and (N, 4) of left, top,
        right and bottom, as shares of the picture's width and height.
    :raises UnreadableImage: nothing stands out from the background, or it is no row of digits.
    """
    ink = _ink(gray)
    # A digit that is small on its page is searched again at a higher resolution, with a margin.
    near = _box(ink, max(gray.shape) / max(ink.shape), margin=0.3)
    ink = _ink(gray[near])
    scale = max(gray[near].shape) / max(ink.shape)
    digits, images, boxes = _digits(ink > 0.5), [], []
    for number, box in enumerate(ndimage.find_objects(digits), start=1):
        digit = np.where(np.isin(digits[box], (0, number)), ink[box], 0)
        if digit.shape[1] > WIDEST * digit.shape[0] or _touch(digit > 0.5):
            shape = f"{digit.shape[1] / digit.shape[0]:.1f} times as wide as high"
            raise UnreadableImage(f"{shape}: digits that touch, or none (leave space between them)")
        digit = _resize(_thicken(_resize(digit, FINE * form.digit_size)), form.digit_size)
        images.append(_placed(digit / digit.max(), form))
        (top, bottom), (left, right) = (
            ((whole.start + scale * np.array([side.start, side.stop])) / size).clip(0, 1)
            for side, whole, size in zip(box, near, gray.shape, strict=True)
        )
        boxes.append((left, top, right, bottom))
    return np.array(images), np.array(boxes)


def refit(image: np.ndarray, form: Form) -> np.ndarray:
    """Return a digit of one dataset (H, W), white on black in [0, 1], in the form of another.

    The box of its ink is resized to the other's longer side, and placed as there.
    """
    return _placed(_resize(image[_box(image / image.max(), cut=0.1)], form.digit_size), form)


def _placed(digit: np.ndarray, form: Form) -> np.ndarray:
    """Return the digit in the middle of an image of the form."""
    frame = np.zeros(form.image_size, np.float32)
    frame[: digit.shape[0], : digit.shape[1]] = digit
    center = ndimage.center_of_mass(digit) if form.centered == "mass" else np.divide(digit.shape, 2)
    shift = np.round(np.divide(frame.shape, 2) - center)  # whole pixels, inside the frame
    shift = shift.clip(0, np.subtract(frame.shape, digit.shape)).astype(int)
    return np.roll(frame, tuple(shift), (0, 1))


def _ink(gray: np.ndarray) -> np.ndarray:
    """Return the share of ink in [0, 1] of each pixel of ``gray``, reduced to ``WORKING_SIZE``."""
    image = Image.fromarray(gray)
    longer, shorter = max(image.size), min(image.size)
    size = max(WORKING_SIZE, min(longer, NARROW * longer // shorter))
    image.thumbnail((size, size), Image.Resampling.BOX, reducing_gap=None)
    gray = ndimage.gaussian_filter(np.asarray(image), min(1, max(image.size) / WORKING_SIZE))
    # Darker or brighter than the paper, whichever stands out more.
    ink = max(_darker(gray), _darker(1 - gray), key=lambda dark: float(np.square(dark).sum()))
    if ink.max() < CONTRAST:
        raise UnreadableImage("nothing stands out from the background")
    threshold = ink.max() / 2
    for _ in range(10):  # the midpoint between the classes' means (Ridler and Calvard, 1978)
        threshold = (ink[ink > threshold].mean() + ink[ink <= threshold].mean()) / 2
    kept = _pieces(ink > max(threshold, CONTRAST / 2))
    # Below a quarter of full ink is paper; above three quarters is full ink.
    soft = (2 * ink / np.median(ink[kept]) - 0.5).clip(0, 1)
    return np.asarray(soft * ndimage.binary_dilation(kept, iterations=2))


def _darker(gray: np.ndarray) -> np.ndarray:
    """Return how much darker than the paper each pixel is, as a share of the paper.

    Ink is darker than a smooth surface, which follows a lamp's light, and than what is left when
    dark things smaller than ``LARGEST`` are removed, which follows the hard edge of a shadow.
    """
    step = int(np.clip(min(gray.shape) // 16, 1, 4))
    # With the minimum of its neighborhood one pixel stands for many: shadows grow, paper does not.
    few = ndimage.minimum_filter(gray, 2 * step - 1)[::step, ::step]
    half = round(LARGEST * max(few.shape) / 2)
    closed = ndimage.grey_closing(np.pad(few, half, "edge"), 2 * half + 1, mode="nearest")
    closed = closed[half : half + few.shape[0], half : half + few.shape[1]]
    closed = closed.repeat(step, 0).repeat(step, 1)[: gray.shape[0], : gray.shape[1]]
    darker = closed - gray
    # 1.4826: from the median absolute deviation to the standard deviation of normal noise
    sample = darker[::step, ::step]
    noise = 1.4826 * float(np.median(np.abs(sample - np.median(sample))))
    share = np.minimum(_paper(gray) - gray, darker / np.maximum(closed, 0.2))
    return np.asarray(share.clip(0) * (darker.max() >= NOISE * noise))


def _paper(gray: np.ndarray) -> np.ndarray:
    """Fit a quadratic surface, the paper with its shadows, to the picture without its outliers."""
    y, x = np.mgrid[-1 : 1 : gray.shape[0] * 1j, -1 : 1 : gray.shape[1] * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    step = max(1, max(gray.shape) // 32)
    few, values = terms[::step, ::step].reshape(-1, 6), gray[::step, ::step].ravel()
    inlier = np.abs(values - np.median(values)) < 0.25
    for _ in range(3):
        surface = np.linalg.lstsq(few[inlier], values[inlier], rcond=None)[0]
        residual = np.abs(values - few @ surface)
        inlier = residual <= max(3 * float(np.median(residual)), 0.02)
    return np.asarray(terms @ surface)


def _pieces(strong: np.ndarray) -> np.ndarray:
    """Select the connected pieces that may belong to a digit: no specks, no edge of a table."""
    labels, count = ndimage.label(strong, np.ones((3, 3)))
    sizes = np.bincount(labels[strong], minlength=count + 1)
    inner = sizes.copy()
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        inner[np.bincount(side, minlength=count + 1) > 0.8 * len(side)] = 0
    sizes = inner if inner.max() > (0.02 * max(strong.shape)) ** 2 else sizes  # more than dust
    return np.asarray(strong & (sizes >= SPECK * sizes.max())[labels])


def _digits(strong: np.ndarray) -> np.ndarray:
    """Group the pieces of ink into digits; return their numbers (H, W) from left to right, from 1.

    :raises UnreadableImage: they are not beside each other in one row.
    """
    labels, _ = ndimage.label(strong, np.ones((3, 3)))
    found = ndimage.find_objects(labels)
    starts, stops = (
        np.array([[getattr(s, end) for s in box] for box in found]) for end in ("start", "stop")
    )
    heights, lengths = (stops - starts)[:, 0], (stops - starts).max(1)
    gap = np.maximum(starts[:, None], starts) - np.minimum(stops[:, None], stops)  # below 0: none
    longer = np.maximum(lengths[:, None], lengths)
    shorter, taller = (each(heights[:, None], heights) for each in (np.minimum, np.maximum))
    level = -gap[..., 0] >= shorter / 2
    beside = level & (gap[..., 1] > -OVERLAP * longer)
    below = (gap[..., 0] >= 0) & (shorter >= taller / 2)
    near = gap.max(2) <= GAP * longer
    large = np.flatnonzero(lengths >= lengths.max() / 2)
    among = np.ix_(large, large)
    total, groups = connected_components((near & ~beside & ~below)[among])
    nearest = gap.max(2)[:, large].argmin(1)  # a small piece, such as the bar of a 5
    others = groups[:, None] != groups
    small = np.flatnonzero(lengths < lengths.max() / 2)
    digit = beside & (lengths >= LEAST * lengths.max())[:, None]
    joins = (near & ~digit)[small, large[nearest[small]]]
    if not (joins.all() and level[among][others].all()):
        raise UnreadableImage(
            "several objects that are no row of digits (crop lines, dots and others away)"
        )
    nearest[large] = np.arange(len(large))
    group = groups[nearest]
    left = [starts[group == number, 1].min() for number in range(total)]
    rank = np.argsort(np.argsort(left, kind="stable")) + 1
    return np.asarray(np.append(0, rank[group])[labels])


def _touch(strong: np.ndarray) -> bool:
    """Whether two digits seem to touch: two high parts that a single stroke connects.

    True of 163 of 262 pairs of rendered digits that overlap by less than half of their width and
    are 1.15 times as wide as high, and of 15 of 5000 digits of MNIST, mostly wide open fours.
    """
    height, width = strong.shape
    strokes = (np.diff(np.pad(strong, ((1, 0), (0, 0))).astype(int), axis=0) == 1).sum(0)
    necks = (strokes == 1) & (strong.sum(0) <= NECK * height)
    necks[: width // 4] = necks[width - width // 4 :] = False
    parts = ((strong[:, :x], strong[:, x:]) for x in np.flatnonzero(necks))
    return width >= NARROWEST * height and any(
        all(np.ptp(np.flatnonzero(part.any(1))) + 1 >= HIGH * height for part in pair)
        for pair in parts
    )


def _box(
    ink: np.ndarray, scale: float = 1, margin: float = 0, cut: float = 0.5
) -> tuple[slice, ...]:
    """Return the box of the ink in a picture ``scale`` times as large, with a relative margin."""
    box = ndimage.find_objects((ink > cut).astype(int))[0]
    extra = margin * max(side.stop - side.start for side in box)
    return tuple(
        slice(max(0, round((s.start - extra) * scale)), round((s.stop + extra) * scale))
        for s in box
    )


def _resize(image: np.ndarray, longer: int) -> np.ndarray:
    height, width = (max(1, round(side * longer / max(image.shape))) for side in image.shape)
    # Pillow averages over all source pixels of an output pixel.
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def _thicken(ink: np.ndarray) -> np.ndarray:
    """Thicken strokes to ``STROKE``, at ``FINE`` pixels per output pixel."""
    # The mean distance to the edge of a strip of width w is w / 4.
    depth = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    radius = (STROKE * FINE - 4 * depth[depth > 0].mean()) / 2
    if radius < 1:
        return ink
    distance = ndimage.distance_transform_edt(np.pad(ink, int(radius)) <= 0.5)
    return np.asarray((1 + radius - distance).clip(0, 1), dtype=np.float32)
