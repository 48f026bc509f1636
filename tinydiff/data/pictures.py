"""One picture from a file, as pixels: read by Pillow, upright, on white, cropped to its central square and resized.

Read next: npz.py.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.limits import read_file

Image.init()
FORMATS = tuple(name for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP") if name in Image.OPEN)  # others are not tried
MOST_PIXELS = 80_000_000  # of one picture
WIDE = ("I;16", "I;16B", "I;16L", "I")  # Pillow's modes for 16 bits of grey
GREY = ("1", "L", "LA", "La", *WIDE)
ODD = dict.fromkeys(WIDE, "16 bits a pixel, the upper 8 are taken") | {
    "P": "a palette, its colours are taken",
    "PA": "a palette, its colours are taken",
    "CMYK": "CMYK, converted without a colour profile",
}


class Picture(NamedTuple):
    """What a file gives: pixels (H, W, C) uint8, or None; whether the file is grey; a remark on each odd thing."""

    pixels: np.ndarray | None
    grey: bool
    remarks: list[str]


def read_picture(path: Path, size: int | None, channels: int | None) -> Picture:
    """Read the picture of a file.  If it cannot be read, the one remark is the reason.

    size: the side of the central square, after it was resized with Lanczos' filter; None keeps the picture as it is.
    channels: 1 or 3; None is 3.  The file's content decides on its format.
    """
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise OSError(f"it has {picture.width:,} x {picture.height:,} pixels, more than {MOST_PIXELS:,}")
            # A JPEG file has two frames if a camera put a preview into it.
            animated = getattr(picture, "is_animated", False) and picture.format != "MPO"
            remarks = ["animated, the first frame is taken"] if animated else []
            if size is not None:
                picture.draft(None, (4 * size, 4 * size))  # a JPEG file can be decoded at a half, a quarter, an eighth
            upright = ImageOps.exif_transpose(picture)
        flat = _flat(upright, remarks).convert("L" if channels == 1 else "RGB")
        if size is not None:
            if min(flat.size) < size:
                remarks.append(f"smaller than {size} x {size}, enlarged")
            flat = square(flat, size)
    except Exception as error:  # Pillow raises a dozen kinds of errors for wrong bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Picture(None, False, [f"not readable ({reason.partition(' <')[0]})"])
    return Picture(np.asarray(flat).reshape(flat.height, flat.width, -1), upright.mode in GREY, remarks)


def square(picture: Image.Image, size: int) -> Image.Image:
    """Crop a picture to its central square, and resize the square to size x size.

    The rest is cut off before, because a filter at the border would see it.
    """
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cropped = picture.crop((left, top, left + side, top + side))
    return cropped.resize((size, size), Image.Resampling.LANCZOS)


def resized(dataset: Dataset, size: int | None) -> Dataset:
    """The same data set with each image cropped and resized by `square`; None leaves them as they are.

    Raises DataError for images of other than 1 or 3 channels.
    """
    images = dataset.images
    if size is None or images.shape[1:3] == (size, size):
        return dataset
    if images.shape[3] not in (1, 3):
        raise DataError(f"--size {size}: images of 1 or 3 channels can be resized, these have {images.shape[3]}")
    squares = (square(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), size) for image in images)
    return replace(dataset, images=np.stack([np.asarray(a).reshape(size, size, -1) for a in squares]))


def _flat(picture: Image.Image, remarks: list[str]) -> Image.Image:
    """The same picture without palette, transparency and 16 bits, in a mode that converts to L and to RGB."""
    remarks += [ODD[picture.mode]] if picture.mode in ODD else []
    if picture.mode in WIDE:
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture
    whole = picture.convert("RGBA")
    remarks += [] if whole.getchannel("A").getextrema() == (255, 255) else ["transparent, laid on white"]
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
