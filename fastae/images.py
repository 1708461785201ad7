"""A user's own image files, of many kinds, to what the model takes: (3, S, S) in [0, 1].

Pillow decodes and `fastae.data.pixels` resizes: for a JPEG that is bit for bit what the data path does on a
CPU, EXIF orientation included (`tests/test_reconstruct.py`), and every other format meets the same geometry.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastae.console import printable
from fastae.data.folder import walk
from fastae.data.geometry import Geometry
from fastae.data.jpeg import MAX_BYTES, Fault, inspect
from fastae.data.pixels import Passes, to_batch
from fastae.errors import FastaeError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names; JPEG takes in MPO, which many phones write. None of them starts another program."""

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
"""What is taken from a folder; a file that is named itself may be called anything."""

MAX_PIXELS = 100_000_000
"""An image that claims more is refused before it is decoded: one of this size takes 2 GB, antialiased 3."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class UnusableImage(Exception):
    """What is wrong with a file, to be read after its name: 'is empty'."""


def find_images(places: Sequence[str]) -> list[str]:
    """The files in the order given; for a folder the images in and below it, sorted by path.

    Links to folders are not followed and hidden files not taken. A folder without any image stays in
    the list, for `load_image` to say so.
    """
    found: list[str] = []
    for place in places:
        found += _images_below(place) if os.path.isdir(place) else [place]  # noqa: PTH112
    return found


def _images_below(root: str) -> list[str]:
    try:
        inside = [path for path in walk(root, SUFFIXES) if _is_wanted(path)]
    except FastaeError:
        return [root]
    return sorted(inside) or [root]


def _is_wanted(path: str) -> bool:
    return not os.path.basename(path).startswith(".") and not os.path.isdir(path)  # noqa: PTH112, PTH119


def load_image(path: str, geometry: Geometry) -> Tensor:
    """One file, upright, cut out and resized as in training: float32 (3, S, S) in [0, 1].

    Of an animation the first frame; transparent parts on white; 16 bits a channel cut to 8; CMYK by
    Pillow's plain formula; colour profiles ignored, as in training.

    Raises UnusableImage for a file that cannot be read, is no image, is damaged, claims more than
    MAX_PIXELS, has no defined colours, or is smaller than the crop.
    """
    region = torch.from_numpy(_centred_square(path, geometry.crop))
    return to_batch(Passes(geometry, compiled=False).resize(region[None]))[0]


def _centred_square(path: str, crop: int | None) -> np.ndarray:
    """uint8 (L, L, 3)."""
    _require_content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return np.array(_rgb(_cut_out(_upright(image), crop), image.format))
    except UnusableImage:
        raise
    except Image.DecompressionBombError:
        raise UnusableImage(f"claims more than {MAX_PIXELS // 10**6} megapixels: shrink it first") from None
    except UnidentifiedImageError:
        raise UnusableImage(f"is not an image that can be read ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise UnusableImage("does not fit into memory") from None
    except Exception as error:  # Pillow's decoders raise nearly anything over a broken file
        reason = printable(str(error)) or type(error).__name__
        raise UnusableImage(f"is damaged: {reason:.120}") from None


def _require_content(path: str) -> None:
    """Asked before opening, which would wait for the other end of a pipe."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise UnusableImage("does not exist") from None
    except OSError as error:
        raise UnusableImage(f"cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnusableImage("is a folder without images")
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImage("is not a file")
    if status.st_size > MAX_BYTES:
        raise UnusableImage(f"has more than {MAX_BYTES >> 20} MiB")
    # Pillow would walk through such a file byte by byte, or once for each scan.
    if (fault := inspect(path).fault) in (Fault.HEADER_CUT, Fault.TOO_MANY_SCANS):
        raise UnusableImage(f"is damaged: {fault.value}")
    if not os.access(path, os.R_OK):
        raise UnusableImage("may not be read")
    if status.st_size == 0:
        raise UnusableImage("is empty")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    with suppress(Exception):  # of damaged EXIF data: the pixels are good all the same
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _cut_out(image: Image.Image, crop: int | None) -> Image.Image:
    """The centred square; a centre between two pixels is taken towards the end, as DALI's crop does."""
    side = crop or min(image.size)
    if side > min(image.size):
        raise UnusableImage(f"is smaller than the {crop}x{crop} pixels that the run's --crop cuts out")
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    return image.crop((left, top, left + side, top + side))


def _rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # Pillow scales PPM alone to 16 bits; a TIFF's 32-bit integers and floats may mean anything.
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and file_format == "PPM"):
        high = np.asarray(image).astype(np.int32) >> 8  # as Pillow itself cuts 16-bit colour
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableImage("has 32 bits a channel, of no known range: convert it to 8 or 16")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layered, mask=layered.getchannel("A"))
    return white
