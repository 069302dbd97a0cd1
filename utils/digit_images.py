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
#: Ink stands out from the paper by so much of the range from black to white, and by so many
#: standard deviations of the paper's grain.
CONTRAST, GRAIN = 0.1, 6
#: At least this share of a picture is paper; where what is at the edge is less, it is a frame.
PAPER = 0.3
#: Of the largest connected piece of ink; smaller pieces are specks.
SPECK = 0.05
#: A gap so wide, compared to all of the ink, is not within a digit: the bar of a 5 is closer.
GAP = 0.25
#: Pixels for one of the network's, where strokes are thickened.
FINE = 10
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
    """Gray values (H, W) float32, 0 to 1, turned as the camera says.

    :raises NotADigit: it is no image, a damaged one, or several.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # photos of 100 megapixels are fine
            with Image.open(path) as image:
                # MPO is how some phones write a photo and its preview.
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise NotADigit("several images in one file; give one a file")
                image.draft("RGB", (4 * WORKING_SIZE, 4 * WORKING_SIZE))  # no need of all of a JPEG
                return _gray(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise NotADigit("no image, or of an unknown kind") from None
    except NotADigit:
        raise
    except OSError as error:
        raise NotADigit(error.strerror or f"a damaged image ({error})") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise NotADigit(f"a damaged or too large image ({error})") from None


def _gray(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # whole numbers of 16 bits and more, or fractions
        values = np.asarray(image, dtype=np.float32)
        if not (np.isfinite(values).all() and values.min() >= 0):
            raise NotADigit("holds values that are no shades of gray")
        # Scanners write 12 bits, and others 8, into files of more.
        white = next((top for top in (1, 255, 4095, 65535) if values.max() <= top), values.max())
        return values / np.float32(white)
    if "A" in image.getbands() or "transparency" in image.info:
        gray, alpha = np.moveaxis(_scaled(image.convert("RGBA").convert("LA")), 2, 0)
        # What is see-through shows white under dark ink, and black under bright ink.
        ink = np.average(gray, weights=alpha) if alpha.any() else 0.0
        mixed: np.ndarray = gray * alpha + (1 - alpha) * np.float32(ink < 0.5)
        return mixed
    if image.mode in ("1", "L"):
        return _scaled(image.convert("L"))
    return _most_contrast(_scaled(image.convert("RGB")))


def _scaled(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _most_contrast(colours: np.ndarray) -> np.ndarray:
    """The mixture (H, W) of red, green and blue in which the pixels (H, W, 3) differ most.

    Green on red of the same brightness is nothing in gray. Of a gray picture it is the gray.
    """
    step = max(1, max(colours.shape) // 200)
    spread = np.cov(colours[::step, ::step].reshape(-1, 3), rowvar=False)
    axis = np.linalg.eigh(np.nan_to_num(spread))[1][:, -1]  # a single pixel has no spread
    weights = axis * (np.sign(axis.sum()) or 1) / np.abs(axis).sum()
    # From 0 also where a colour counts as dark.
    mixed: np.ndarray = colours @ weights.astype(np.float32) - np.float32(weights.clip(max=0).sum())
    return mixed


def as_given(gray: np.ndarray, form: Form) -> np.ndarray:
    """A gray image (H, W) that is in the form of the data already, as float32 in [0, 1].

    :raises NotADigit: it has another size, or is black on white.
    """
    height, width = form.image_size
    if gray.shape != (height, width):
        raise NotADigit(
            f"{gray.shape[1]} x {gray.shape[0]} pixels, where the data have {width} x {height}; "
            "without --raw it is prepared"
        )
    if gray.mean() > 0.5 and np.median(gray[_edge(gray)]) > 0.5:  # no digit of MNIST or USPS is so
        raise NotADigit("black on white, where the data are white on black; without --raw it fits")
    return gray


def as_trained(gray: np.ndarray, form: Form) -> np.ndarray:
    """The digit of a picture (H, W) in the form of the data: float32 in [0, 1], white on black.

    :raises NotADigit: nothing stands out from the background, or several things do.
    """
    # Twice: a digit that is small on its page is looked at again, closer.
    ink = _ink(_reduced(_around(_ink(_reduced(gray)), gray)))
    ink = ink[_box(ink)]
    _require_one(ink)
    ink = _thickened(_fitted(ink, FINE * form.digit_size))
    digit = _fitted(ink, form.digit_size)
    return _placed(digit / digit.max(), form)


def _reduced(gray: np.ndarray) -> np.ndarray:
    """At most WORKING_SIZE pixels long."""
    image = Image.fromarray(gray)
    image.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _fitted(image: np.ndarray, size: int) -> np.ndarray:
    """With ``size`` pixels at its longer side."""
    height, width = (max(1, round(side * size / max(image.shape))) for side in image.shape)
    # Pillow averages over all the pixels that one is made of.
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def _ink(gray: np.ndarray) -> np.ndarray:
    """How much of each pixel is ink, 0 to 1, whichever of ink and paper is the darker."""
    smooth = ndimage.gaussian_filter(gray, max(gray.shape) / WORKING_SIZE)
    difference = _without_frame(smooth)
    grain = 1.4826 * float(np.median(np.abs(difference)))  # the standard deviation, were it normal
    least = max(CONTRAST, GRAIN * grain)
    found = []
    for ink in (difference.clip(0), (-difference).clip(0)):
        if ink.max() < least:
            continue
        strong = ink > max(_otsu(ink), least / 2)
        kept = _pieces(strong)
        found.append((float(np.square(ink[kept]).sum()), ink, kept))
    if not found:
        raise NotADigit("nothing in it stands out from the background")
    _, ink, kept = max(found, key=lambda candidate: candidate[0])
    # Paper is 0 up to a quarter of full ink; from three quarters on it is full.
    soft = ((ink / np.median(ink[kept]) - 0.25) / 0.5).clip(0, 1)
    digit: np.ndarray = soft * ndimage.binary_dilation(kept, iterations=2)
    return digit


def _without_frame(gray: np.ndarray) -> np.ndarray:
    """How much brighter than the paper each pixel is; 0 in a frame around it."""
    difference = np.zeros_like(gray)
    for cut in range(0, min(gray.shape) // 5, max(1, min(gray.shape) // 25)):
        inner = gray[cut : gray.shape[0] - cut, cut : gray.shape[1] - cut]
        difference[:] = 0
        difference[cut : gray.shape[0] - cut, cut : gray.shape[1] - cut] = inner - _paper(inner)
        if np.mean(np.abs(difference) < CONTRAST) >= PAPER:
            break
    return difference


def _paper(gray: np.ndarray) -> np.ndarray:
    """The paper, shadows included: the smooth surface of second degree through the edge pixels.

    Strokes that reach the edge are outliers, and left out.
    """
    height, width = gray.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    edge = _edge(gray)
    step = max(1, edge.sum() // 1000)
    of_edge, values = terms[edge][::step], gray[edge][::step]
    inlier = np.abs(values - np.median(values)) < 0.25
    for _ in range(3):
        surface = np.linalg.lstsq(of_edge[inlier], values[inlier], rcond=None)[0]
        rest = np.abs(values - of_edge @ surface)
        inlier = rest <= max(3 * float(np.median(rest)), 0.02)
    fitted: np.ndarray = terms @ surface
    return fitted


def _edge(gray: np.ndarray) -> np.ndarray:
    """The outermost pixels, a fiftieth of the shorter side wide."""
    margin = max(1, min(gray.shape) // 50)
    edge = np.ones(gray.shape, dtype=bool)
    edge[margin:-margin, margin:-margin] = False
    return edge


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


def _pieces(strong: np.ndarray) -> np.ndarray:
    """Where the connected pieces of ink are that may be a digit's.

    Not specks; and not what runs along a whole side, such as the edge of the table, unless there is
    nothing else.
    """
    labels, count = ndimage.label(strong, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    along_a_side = np.zeros(count + 1, dtype=bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        along_a_side |= np.bincount(line, minlength=count + 1) > 0.8 * len(line)
    others = np.where(along_a_side, 0, sizes)
    if np.sqrt(others.max()) > 0.02 * max(strong.shape):  # more than a speck of dust
        sizes = others
    kept: np.ndarray = (sizes >= SPECK * sizes.max())[labels] & strong
    return kept


def _box(ink: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _around(ink: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """The part of a picture where its ink was found, with so much paper at each side that its edge
    is paper."""
    rows, columns = _box(ink)
    scale = max(gray.shape) / max(ink.shape)
    margin = 0.3 * max(rows.stop - rows.start, columns.stop - columns.start)
    top, left = (max(0, int((side.start - margin) * scale)) for side in (rows, columns))
    bottom, right = (int((side.stop + margin) * scale) + 1 for side in (rows, columns))
    return gray[top:bottom, left:right]


def _require_one(ink: np.ndarray) -> None:
    for lines in ((ink > 0.5).any(0), (ink > 0.5).any(1)):
        gap = np.diff(np.flatnonzero(lines), prepend=0).max()
        if gap > GAP * max(ink.shape):
            raise NotADigit("several things stand out, apart from each other; one digit a picture")


def _thickened(ink: np.ndarray) -> np.ndarray:
    """Strokes at least as thick as those of the data; at FINE pixels for one of the network's."""
    # A strip of width w has a mean distance of w / 4 from its edge.
    depth = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    radius = (STROKE * FINE - 4 * depth[depth > 0].mean()) / 2
    if radius < 1:
        return ink
    away = ndimage.distance_transform_edt(np.pad(ink, int(radius)) <= 0.5)
    thick: np.ndarray = (1 + radius - away).clip(0, 1).astype(np.float32)
    return thick


def _placed(digit: np.ndarray, form: Form) -> np.ndarray:
    """In the middle of the frame, moved by whole pixels, and never over its edge."""
    height, width = digit.shape
    frame = np.zeros(form.image_size, np.float32)
    if form.centred == "mass":
        mass = ndimage.center_of_mass(digit)
        y, x = (size // 2 - centre for size, centre in zip(frame.shape, mass, strict=True))
    else:
        y, x = (frame.shape[0] - height) / 2, (frame.shape[1] - width) / 2
    top = min(max(round(y), 0), frame.shape[0] - height)
    left = min(max(round(x), 0), frame.shape[1] - width)
    frame[top : top + height, left : left + width] = digit
    return frame
