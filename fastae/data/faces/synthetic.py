"""The built-in data set: 2,000 synthetic faces as JPEGs, so that nothing needs downloading.

Drawn once, in about 12 s on one core, into the cache folder: 178x218, baseline, 4:2:0, 7.4 kB on
average, framed as aligned CelebA is. They are drawn again if one is missing or is not what was drawn. One
machine draws the same bytes every time; another processor or version of Pillow may round otherwise, so the
digests that the files are compared with are those of the drawing itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fastae.data.files.celeba import image_name
from fastae.utils.cache import ensure_entry
from fastae.utils.console import log

COUNT = 2000
NAME = f"faces-v1-{COUNT}"
"""Of their folder in the cache."""

QUALITY = 86
"""JPEG quality; gives the size of CelebA's files."""


def write(folder: Path, count: int = COUNT) -> None:
    """Draws faces 1..count into an existing folder as 000001.jpg, 000002.jpg, ..."""
    from fastae.data.faces import portrait  # prepares its textures when imported

    # Having once freed a block this large, glibc keeps freed memory for reuse. Otherwise each
    # temporary array is faulted in anew, a fifth of the time.
    np.empty(24 << 20, np.uint8)
    # One thread: with arrays this small a second only fights for the interpreter lock.
    for index in range(1, count + 1):
        picture = Image.fromarray(portrait.draw(index))
        picture.save(folder / image_name(index), quality=QUALITY, subsampling="4:2:0")


def is_builtin(folder: str, cache: Path) -> bool:
    """Whether this path means the built-in faces: those in `cache`, or those of a cache that is gone."""
    if os.path.basename(folder) != NAME:  # noqa: PTH119
        return False
    return not os.path.exists(folder) or os.path.realpath(folder) == os.path.realpath(cache / NAME)  # noqa: PTH110


def ensure(cache: Path) -> Path:
    """The folder in `cache` with the faces, bit for bit as they were drawn; drawn if they are not there.

    They appear whole or not at all. Raises OSError.
    """
    folder = cache / NAME

    def draw(draft: Path) -> None:
        log(f"drawing {COUNT:,} synthetic faces into {folder}, once ...")
        write(draft, COUNT)

    ensure_entry(folder, "faces", f"{COUNT:,} synthetic faces", draw)
    return folder
