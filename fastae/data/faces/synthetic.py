"""The built-in data set: 2,000 synthetic faces as JPEGs, so that nothing needs downloading.

The faces are drawn once into the cache folder, in about 12 s on one core: 178x218 pixels, baseline, 4:2:0,
7.2 kB on average, framed like aligned CelebA. They are drawn again if a file is missing or has changed. One
machine draws the same bytes every time, but another processor or version of NumPy or Pillow may round
differently. So the files are compared with digests taken when they were drawn.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fastae.data.faces import portrait
from fastae.data.files.celeba import image_name
from fastae.utils.cache import ensure_entry
from fastae.utils.console import log

FACES = 2000
FOLDER_NAME = f"faces-v2-{FACES}"
"""The name of the folder of faces in the cache."""

QUALITY = 86
"""The JPEG quality with which the files are about as large as CelebA's."""


def write(folder: Path, count: int = FACES) -> None:
    """Draws faces 1..count into an existing folder as 000001.jpg, 000002.jpg, ..."""
    # Once a block of this size has been freed, glibc keeps freed memory for reuse. Otherwise it would map the
    # pages of each temporary array again, which takes a quarter of the time.
    np.empty(24 << 20, np.uint8)
    # One thread: with arrays this small, a second one only competes for the interpreter lock.
    for index in range(1, count + 1):
        picture = Image.fromarray(portrait.draw(index))
        picture.save(folder / image_name(index), quality=QUALITY, subsampling="4:2:0")


def is_builtin(folder: str, cache: Path) -> bool:
    """Whether this path is the folder of faces in `cache`, or in a cache that no longer exists."""
    if os.path.basename(folder) != FOLDER_NAME:
        return False
    return not os.path.exists(folder) or os.path.realpath(folder) == os.path.realpath(cache / FOLDER_NAME)


def ensure(cache: Path) -> Path:
    """Returns the folder of faces in `cache`. Draws the faces if a file is missing or has changed.

    The folder appears once it is complete. Raises OSError if it cannot be written.
    """
    folder = cache / FOLDER_NAME

    def draw(draft: Path) -> None:
        log(f"drawing {FACES:,} synthetic faces into {folder}, once ...")
        write(draft, FACES)

    ensure_entry(folder, "faces", f"{FACES:,} synthetic faces", fill=draw)
    return folder
