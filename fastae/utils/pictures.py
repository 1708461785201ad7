"""Draws originals beside their reconstructions, as arrays and as PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastae.utils.files import atomic_write

WHITE = 255

GAP = 2
"""The number of white pixels between images."""

TITLE, MARGIN = 24, 96
"""Pixels above and left of a sheet's grid, for the title and the names of its rows."""

COLUMNS = 8
"""The most images in a row, unless the caller names another number."""


def pairs(originals: Tensor, reconstructions: Tensor, columns: int = COLUMNS) -> np.ndarray:
    """Returns a picture with rows of originals, each above the row of their reconstructions.

    Args:
        originals: images (N, 3, S, S) in [0, 1].
        reconstructions: their reconstructions, of the same shape and range.
        columns: the most images in a row. The last row may have fewer; there are no empty columns.

    Returns:
        uint8 (H, W, 3).
    """
    return _grid(_bands(originals, reconstructions, columns))


def sample_sheet(originals: Tensor, reconstructions: Tensor, iteration: int) -> np.ndarray:
    """Returns `pairs` with the iteration above them and a name beside each row: uint8 (H, W, 3)."""
    bands = _bands(originals, reconstructions, COLUMNS)
    names = ["original", "reconstruction"] * (len(bands) // 2)
    return named_rows(f"iteration {iteration:,}", list(zip(names, bands, strict=True)))


def named_rows(title: str, rows: Sequence[tuple[str, Tensor]]) -> np.ndarray:
    """Returns rows of images with a title above them and a name beside each.

    Args:
        title: the title.
        rows: names and images (N, 3, S, S) in [0, 1]. N is largest in the first row.

    Returns:
        uint8 (H, W, 3).
    """
    grid, side = _grid([images for _, images in rows]), rows[0][1].shape[-1]
    height, width, _ = grid.shape
    sheet = Image.new("RGB", (MARGIN + width, TITLE + height), "white")
    sheet.paste(Image.fromarray(grid), (MARGIN, TITLE))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((4, TITLE // 2), title, fill="black", font=font, anchor="lm")
    for row, (name, _) in enumerate(rows):
        middle = TITLE + row * (side + GAP) + side // 2
        draw.text((MARGIN - 6, middle), name, fill="black", font=font, anchor="rm")
    return np.array(sheet)


def side_by_side(original: Tensor, reconstruction: Tensor) -> np.ndarray:
    """Returns an image beside its reconstruction, both (3, S, S) in [0, 1], as uint8 (S, 2 S + GAP, 3)."""
    return _row(torch.stack([original, reconstruction]), 2)[:-GAP, :-GAP]


def to_bytes(images: Tensor) -> np.ndarray:
    """Returns images (N, 3, S, S) in [0, 1] as uint8 (N, S, S, 3). NaN becomes black."""
    pixels = images.float().nan_to_num().clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def encode_png(picture: np.ndarray) -> bytes:
    """Returns the content of a PNG file with a uint8 array (H, W, 3 or 4)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()


def save_png(picture: np.ndarray, path: Path) -> None:
    """Writes a uint8 (H, W, 3) array as a PNG file, by `atomic_write`."""
    with atomic_write(path) as file:
        file.write(encode_png(picture))


def _bands(originals: Tensor, reconstructions: Tensor, columns: int) -> list[Tensor]:
    """Returns rows of at most `columns` images: originals, their reconstructions, the next originals, ..."""
    pieces = zip(originals.split(columns), reconstructions.split(columns), strict=True)
    return [band for both in pieces for band in both]


def _grid(bands: Sequence[Tensor]) -> np.ndarray:
    """Returns rows of images one below the other. The first is the longest."""
    return np.concatenate([_row(images, len(bands[0])) for images in bands])


def _row(images: Tensor, columns: int) -> np.ndarray:
    """Returns images (N, 3, S, S) in [0, 1] in a row of `columns`, with a gap right of and below each."""
    margin = ((0, 0), (0, GAP), (0, GAP), (0, 0))
    row = np.concatenate(list(np.pad(to_bytes(images), margin, constant_values=WHITE)), axis=1)
    missing = (columns - len(images)) * (images.shape[-1] + GAP)
    return np.pad(row, ((0, 0), (0, missing), (0, 0)), constant_values=WHITE)
