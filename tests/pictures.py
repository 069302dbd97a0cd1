"""Draw digits, and save them in every supported kind of file."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from DJSW.pipelines import DATASETS
from utils.handwriting import prepare_image

MNIST, USPS = DATASETS["mnist_4_9"], DATASETS["usps_0_6"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WEIGHTS = {
    "sigurd": "weights/SMLP/smlp_standard_4_checkpoint_best.pt",
    "waly": "weights/WMLP/wmlp_standard_3_checkpoint_best.pt",
    "dennis": "weights/DMLP/dmlp_standard_1_checkpoint_best.pt",
}


def drawn(digit, font="DejaVuSans", size=200, at=(200, 200), canvas=(400, 400)):
    """Return a black digit on white, float32 in [0, 1]; the fonts come with matplotlib."""
    image = Image.new("L", canvas, 255)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    ImageDraw.Draw(image).text(
        at, str(digit), fill=0, font=ImageFont.truetype(str(path), size), anchor="mm"
    )
    return np.asarray(image, dtype=np.float32) / 255


def row_of(digits, font="DejaVuSans", size=120):
    """Return black digits beside each other on white."""
    return drawn(
        digits,
        font,
        size,
        (len(digits) * size // 3 + 60, 160),
        (len(digits) * size * 2 // 3 + 120, 320),
    )


def noisy(gray, spread=0.1):
    """Add the noise of a sensor."""
    noise = np.random.default_rng(0).normal(0, spread, gray.shape)
    return (gray + noise).clip(0, 1).astype(np.float32)


def in_scenes(digit):
    """Return a digit as photographs show it, by name: hard shadows, faint pencil, tilted paper."""
    gray = drawn(digit)
    y, x = np.mgrid[:400, :400]
    tilted = Image.fromarray(np.pad(gray, 30, constant_values=1)).rotate(
        25, Image.Resampling.BILINEAR, expand=True, fillcolor=0.3
    )
    soft = 0.95 - 0.4 / (1 + np.exp((x - 200) / 12))
    scenes = {
        "half in shadow": noisy(gray * np.where(x < 200, 0.55, 0.95), 0.01),
        "diagonal shadow": noisy(gray * np.where(x + y < 420, 0.5, 0.95), 0.01),
        "steep shadow": noisy(gray * np.where(x + 0.4 * y < 200, 0.5, 0.95), 0.01),
        "shadow in a corner": noisy(gray * np.where((x < 220) & (y < 180), 0.6, 0.9), 0.01),
        "soft edge of a shadow": noisy(gray * soft, 0.01),
        "faint pencil": noisy(0.85 - 0.06 * (1 - gray), 0.005),
        "faint pencil, a lamp": noisy((0.85 - 0.06 * (1 - gray)) * (1 - 0.4 * x / 400), 0.004),
        "tilted paper": noisy(np.asarray(tilted), 0.01),
    }
    return {f"{digit}, {name}": scene for name, scene in scenes.items()}


def prepared(gray, form):
    """Return the only digit of a picture in the form of a dataset."""
    (image,), _ = prepare_image(gray, form)
    return image


def files(folder):
    """Save one digit in every supported kind of file."""
    gray = (255 * drawn(4, "DejaVuSansMono")).astype(np.uint8)
    image = Image.fromarray(gray)
    image.save(folder / "gray.png")
    image.convert("RGB").save(folder / "color.jpg")
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("1").save(folder / "bilevel.png")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "16bit.png")
    ink = np.zeros((400, 400, 4), np.uint8)
    ink[..., 3] = 255 - gray
    Image.fromarray(ink).save(folder / "black_ink.png")
    ink[..., :3] = 255
    Image.fromarray(ink).save(folder / "white_ink.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # camera held upright: rotate by 90 degrees clockwise
    turned.convert("RGB").save(folder / "photo.jpg", exif=exif)
    image.resize((4000, 4000)).convert("RGB").save(folder / "large.jpg")
    Image.fromarray((gray // 16).astype(np.uint16) * 273).save(folder / "12bit.png")
    Image.fromarray(gray.astype(np.int32)).save(folder / "32bit.tif")
    Image.fromarray(gray.astype(np.float32) / 255).save(folder / "fractions.tif")
    green = np.full((400, 400, 3), (190, 70, 70), np.uint8)
    green[gray < 128] = (60, 150, 60)  # of about the same brightness
    Image.fromarray(green).save(folder / "green_on_red.png")
    red = np.full((400, 400, 3), (250, 240, 220), np.uint8)
    red[gray < 128] = (160, 20, 30)
    Image.fromarray(red).save(folder / "red.png")
