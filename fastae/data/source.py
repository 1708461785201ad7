"""Which images a run trains on: --data, else $FASTAE_DATA, else the embedded synthetic faces."""

from __future__ import annotations

import os

from fastae.cache import cache_folder
from fastae.data import faces
from fastae.data.folder import ImageFolder, open_folder
from fastae.errors import FastaeError

VARIABLE = "FASTAE_DATA"


def open_source(data: str | None, crop: int | None = None) -> tuple[ImageFolder, str]:
    """The folder, opened, and where it came from in words. Draws the faces the first time.

    Raises FastaeError as `open_folder` does, and where the faces cannot be written.
    """
    if data is not None:
        return open_folder(data, crop), data
    if data := os.environ.get(VARIABLE):
        return open_folder(data, crop), f"{data} (from ${VARIABLE})"
    try:
        root = faces.ensure(cache_folder())
    except OSError as error:
        raise FastaeError(f"cannot write the synthetic faces to {cache_folder()}: {error}") from None
    return open_folder(root, crop), f"no --data, so synthetic faces in {root}"
