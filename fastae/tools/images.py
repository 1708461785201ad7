"""A user's own image files, of many formats, as what the model takes: (3, S, S) in [0, 1].

Pillow decodes and `fastae.data.pixel_ops` resizes: a JPEG gives bit for bit what training on a CPU sees, EXIF
orientation included (`tests/tools/test_reconstruct.py`). Every other format gets the same crop and resize.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastae.data.crop_resize import CropResize
from fastae.data.folder import walk
from fastae.data.jpeg import MAX_BYTES, Fault, inspect
from fastae.data.pixel_ops import PixelOps, to_batch
from fastae.utils.console import printable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names; JPEG includes MPO, which many phones write. No decoder of these starts another program."""

SUFFIXES = tuple(name for name, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
"""What is taken from a folder; a file that is named itself may have any name."""

MAX_PIXELS = 100_000_000
"""An image that claims more is refused before it is decoded; this many take 2 GB, antialiased 3 GB."""

NOT_OPENED = {
    Fault.GONE, Fault.DANGLING, Fault.UNREADABLE, Fault.NOT_A_FILE, Fault.EMPTY,
    Fault.HEADER_CUT, Fault.TOO_MANY_SCANS,
}  # fmt: skip
"""Opening a pipe would wait; the last two Pillow would read byte by byte, or once per scan."""


class UnusableImage(Exception):
    """What is wrong with a file, as text with details: 'too large: more than 256 MiB'."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault.value}: {detail}" if detail else fault.value)
        self.fault = fault


def find_images(places: Sequence[str]) -> list[str]:
    """The files in the order given; for a folder the images in and below it, sorted by path.

    Links to folders and hidden files are ignored. A folder without images stays in the list, for `load_image`
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

    An animation gives its first frame. Transparency is blended over white, 16 bits per channel are cut to 8,
    CMYK is converted by Pillow's plain formula, colour profiles are ignored as in training.
    Raises UnusableImage.
    """
    region = torch.from_numpy(_centred_square(path, crop_resize.crop))
    return to_batch(PixelOps(crop_resize, compiled=False).resize(region[None]))[0]


def _centred_square(path: str, crop: int | None) -> np.ndarray:
    """uint8 (L, L, 3). A centre between two pixels is rounded towards the end, as by DALI's crop."""
    report = inspect(path)
    if report.fault in NOT_OPENED:
        empty = report.fault is Fault.NOT_A_FILE and os.path.isdir(path)  # noqa: PTH112
        raise UnusableImage(report.fault, "a folder without images" if empty else "")
    if report.size > MAX_BYTES:
        raise UnusableImage(Fault.TOO_LARGE, f"more than {MAX_BYTES >> 20} MiB")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            with suppress(Exception):  # damaged EXIF data; the pixels are good all the same
                ImageOps.exif_transpose(image, in_place=True)
            side = crop or min(image.size)
            if side > min(image.size):
                raise UnusableImage(Fault.TOO_SMALL, f"the run's --crop is {crop}")
            left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
            return np.array(_rgb(image.crop((left, top, left + side, top + side)), image.format))
    except UnusableImage:
        raise
    except Image.DecompressionBombError:
        limit = f"more than {MAX_PIXELS // 10**6} megapixels; shrink it first"
        raise UnusableImage(Fault.TOO_LARGE, limit) from None
    except UnidentifiedImageError:
        raise UnusableImage(Fault.UNDECODABLE, f"not a {', '.join(FORMATS)} file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything over a broken file
        reason = printable(str(error)) or type(error).__name__
        raise UnusableImage(Fault.UNDECODABLE, f"{reason:.120}") from None


def _rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # Pillow clips 16 bits to 8. It scales only PPM to 16; a TIFF's 32-bit numbers may mean anything.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PPM"):
        high = np.asarray(image).astype(np.int32) >> 8  # as Pillow itself cuts 16-bit colour
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableImage(Fault.UNSUPPORTED, "32 bits per channel; convert it to 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
