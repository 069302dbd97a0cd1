"""Draw digits, and save them in every supported kind of file."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from DJSW.pipelines import DATASETS

MNIST, USPS = DATASETS["mnist_4_9"], DATASETS["usps_0_6"]
WEIGHTS = {
    "sigurd": "weights/SMLP/smlp_standard_checkpoint_best.pt",
    "waly": "weights/WMLP/wmlp_standard_checkpoint_best.pt",
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
