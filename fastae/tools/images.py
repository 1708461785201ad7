"""A user's own image files, of many formats, as what the model takes: (3, S, S) in [0, 1].

Pillow decodes and `fastae.data.loaders.pixel_ops` resizes: a JPEG gives bit for bit what training on a CPU
sees, EXIF orientation included (`tests/tools/test_reconstruct.py`). Every other format gets the same crop and
resize.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastae.data.files.folder import walk
from fastae.data.files.jpeg import Fault, inspect
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.pixel_ops import PixelOps, to_batch
from fastae.errors import FastaeError
from fastae.utils.console import printable
from fastae.utils.paths import URL

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names; JPEG includes MPO, which many phones write. No decoder of these starts another program."""

SUFFIXES = tuple(name for name, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
"""What is taken from a folder; a file that is named itself may have any name."""

NOT_OPENED = {
    Fault.GONE, Fault.DANGLING, Fault.UNREADABLE, Fault.NOT_A_FILE, Fault.EMPTY,
    Fault.HEADER_CUT, Fault.TOO_MANY_SCANS,
}  # fmt: skip
"""Opening a pipe would wait; the last two Pillow would read byte by byte, or once per scan."""


class UnusableImage(Exception):
    """What is wrong with a file, in one line."""


def find_images(places: Sequence[str]) -> list[str]:
    """The files in the order given; for a folder the images in and below it, sorted by path.

    Hidden files are ignored. A folder without images stays in the list, for `load_image`
    to refuse. Raises FastaeError for a folder that cannot be listed.
    """
    return [path for place in places for path in sorted(_images_below(place)) or [place]]


def _images_below(place: str) -> Iterator[str]:
    for path in walk(place, SUFFIXES) if os.path.isdir(place) else ():  # noqa: PTH112
        folder_like_an_image = path.lower().endswith(SUFFIXES) and os.path.isdir(path)  # noqa: PTH112
        if not folder_like_an_image and not os.path.basename(path).startswith("."):  # noqa: PTH119
            yield path


def load_image(path: str, crop_resize: CropResize) -> Tensor:
    """One file, upright, cropped and resized as in training: float32 (3, S, S) in [0, 1].

    An animation gives its first frame. Transparency is blended over white, CMYK is converted by Pillow's
    plain formula, color profiles are ignored as in training. Raises UnusableImage, for a file of more pixels
    than Pillow opens (180 million) too.
    """
    try:
        region = torch.from_numpy(_centred_square(path, crop_resize.crop))
    except (UnusableImage, FastaeError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything over a broken file
        reason = printable(str(error)) or type(error).__name__
        raise UnusableImage(f"does not decode: {reason:.120}") from None
    return to_batch(PixelOps(crop_resize, compiled=False).resize(region[None]))[0]


def _centred_square(path: str, crop: int | None) -> np.ndarray:
    """uint8 (L, L, 3). A centre between two pixels is rounded towards the end, as by DALI's crop."""
    fault = inspect(path).fault
    if fault in NOT_OPENED:
        raise UnusableImage(_reason(path, fault))
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
        with suppress(Exception):  # damaged EXIF data; the pixels are good all the same
            ImageOps.exif_transpose(image, in_place=True)
        side = crop or min(image.size)
        if side > min(image.size):
            raise UnusableImage(f"too small: the run's --crop is {crop}")
        left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
        return np.array(_rgb(image.crop((left, top, left + side, top + side))))


def _reason(path: str, fault: Fault) -> str:
    """Why a file is not opened, to the user who named it."""
    if fault is Fault.NOT_A_FILE and os.path.isdir(path):  # noqa: PTH112
        return "a folder without images"
    if fault is Fault.GONE:
        return "a URL: only local files are read" if URL.match(path) else "does not exist"
    return fault.value


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        raise UnusableImage("more than 8 bits per channel: convert it to 8")  # Pillow would clip them
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
