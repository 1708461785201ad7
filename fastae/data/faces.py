"""The built-in data set: 2,000 synthetic faces as JPEGs, so that nothing needs downloading.

Drawn once, in about 12 s on one core, into the cache folder: 178x218, baseline, 4:2:0, 7.4 kB on
average, framed as aligned CelebA is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastae.data.celeba import image_name
from fastae.utils.cache import ensure_entry
from fastae.utils.console import log

COUNT = 2000
QUALITY = 86
"""JPEG quality; gives the size of CelebA's files."""


def write(folder: Path, count: int = COUNT) -> None:
    """Draws faces 1..count into an existing folder as 000001.jpg, 000002.jpg, ..."""
    from fastae.data import portrait  # prepares its textures when imported

    # Having once freed a block this large, glibc keeps freed memory for reuse. Otherwise each
    # temporary array is faulted in anew, a fifth of the time.
    np.empty(24 << 20, np.uint8)
    # One thread: with arrays this small a second only fights for the interpreter lock.
    for index in range(1, count + 1):
        picture = Image.fromarray(portrait.draw(index))
        picture.save(folder / image_name(index), quality=QUALITY, subsampling="4:2:0")


def ensure(cache: Path) -> Path:
    """The folder in `cache` with the faces; made on the first call, whole or not at all. Raises OSError."""
    folder = cache / f"faces-v1-{COUNT}"

    def draw(draft: Path) -> None:
        log(f"drawing {COUNT:,} synthetic faces into {folder}, once ...")
        write(draft, COUNT)

    ensure_entry(folder, "faces", f"{COUNT:,} synthetic faces", draw)
    return folder
