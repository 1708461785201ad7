"""Loads a user's image files, of many formats, as the model's input: (3, S, S) in [0, 1].

Pillow decodes and `fastae.data.loaders.kernel` resizes. For a JPEG the result is bit for bit that of
training on a CPU, EXIF orientation included (`tests/tools/test_reconstruct.py`). Other formats get the same
crop and resize.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from fastae.data.files.jpeg import Fault, inspect
from fastae.data.files.search import EntryKind, walk
from fastae.data.loaders.cpu_ops import resize
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.pixel_ops import to_batch
from fastae.errors import FastaeError
from fastae.utils.console import printable
from fastae.utils.paths import URL

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names of the formats. JPEG includes MPO, which many phones write. None starts another program."""

SUFFIXES = tuple(name for name, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
"""The suffixes of files that are read from a folder. A file that is given itself may have any name."""

NOT_OPENED = {
    Fault.GONE, Fault.DANGLING, Fault.UNREADABLE, Fault.NOT_A_FILE, Fault.EMPTY,
    Fault.HEADER_CUT, Fault.TOO_MANY_SCANS,
}  # fmt: skip
"""Faults of files that are not opened.

Opening a pipe would block. Pillow would read files with the last two faults byte by byte, or once per scan.
"""


class UnusableImage(Exception):
    """A file cannot be used. The message is the reason, in one line."""


def find_images(given: Sequence[str]) -> list[str]:
    """Lists image files: the given ones in order, and for a folder the images in and below it, by path.

    Hidden files are ignored. A folder without images stays in the list, so that `load_image` rejects it.
    Raises FastaeError if a folder cannot be listed.
    """
    return [image for path in given for image in sorted(_images_below(path)) or [path]]


def _images_below(path: str) -> Iterator[str]:
    """Yields the paths of the images in and below a folder, and of folders that cannot be listed.

    It yields nothing for a file.
    """
    for entry in walk(path) if os.path.isdir(path) else ():  # noqa: PTH112
        is_image = entry.kind is EntryKind.FILE and entry.suffix in SUFFIXES
        is_hidden = os.path.basename(entry.path).startswith(".")  # noqa: PTH119
        if (is_image or entry.kind is EntryKind.UNLISTED_FOLDER) and not is_hidden:
            yield entry.path


def load_image(path: str, crop_resize: CropResize) -> Tensor:
    """Loads one file, upright, cropped and resized as in training: float32 (3, S, S) in [0, 1].

    The first frame of an animation is used. Transparency is blended over white, CMYK is converted by Pillow's
    plain formula, and color profiles are ignored as in training.

    Raises UnusableImage, also if a file has more pixels than Pillow opens (180 million).
    """
    try:
        region = _centred_square(path, crop_resize.crop)
    except (UnusableImage, FastaeError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly any error for a broken file
        reason = printable(str(error)) or type(error).__name__
        raise UnusableImage(f"does not decode: {reason:.120}") from None
    return to_batch(resize(region, crop_resize))[0]


def _centred_square(path: str, crop: int | None) -> np.ndarray:
    """Returns the centred square, uint8 (L, L, 3). Half a pixel rounds down and to the right, as in DALI."""
    fault = inspect(path).fault
    if fault in NOT_OPENED:
        raise UnusableImage(_reason(path, fault))
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
        with suppress(Exception):  # damaged EXIF data do not matter: the pixels are good
            ImageOps.exif_transpose(image, in_place=True)
        side = crop or min(image.size)
        if side > min(image.size):
            raise UnusableImage(f"too small: the run's --crop is {crop}")
        left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
        return np.array(_rgb(image.crop((left, top, left + side, top + side))))


def _reason(path: str, fault: Fault) -> str:
    """Returns the reason why a file is not opened, in words."""
    if fault is Fault.NOT_A_FILE and os.path.isdir(path):  # noqa: PTH112
        return "a folder without images"
    if fault is Fault.GONE:
        return "a URL: only local files are read" if URL.match(path) else "does not exist"
    return fault.value


def _rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, over white. Raises UnusableImage for more than 8 bits per channel."""
    if image.mode[0] in "IF":
        raise UnusableImage("more than 8 bits per channel: convert it to 8")  # Pillow would clip them
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
