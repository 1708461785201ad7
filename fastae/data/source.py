"""Finds the images that a run trains on: --data, else $FASTAE_DATA, else the built-in synthetic faces."""

from __future__ import annotations

import os
from pathlib import Path

from fastae.data.faces import synthetic as faces
from fastae.data.files.folder import ImageFolder, open_folder
from fastae.data.files.manifest import Manifest
from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import printable
from fastae.utils.paths import user_path

VARIABLE = "FASTAE_DATA"


def open_source(
    data: str | None,
    crop: int | None = None,
    cache: Path | None = None,
    manifest: Manifest | None = None,
) -> tuple[ImageFolder, str]:
    """Opens the folder of images. The synthetic faces are drawn if they are missing or damaged.

    Args:
        data: a folder of images, or the folder in which a resumed run had the synthetic faces.
        crop: as for `open_folder`.
        cache: the cache folder, for the faces and the results of file checks. Default: the user's.
        manifest: as for `open_folder`.

    Returns:
        The folder, and its source in words.

    Raises:
        FastaeError: as for `open_folder`, or the faces cannot be written.
    """
    cache = cache or cache_folder()
    if data:
        source = printable(data)
    elif data := os.environ.get(VARIABLE):
        data = user_path(data, f"${VARIABLE}")
        source = f"{printable(data)} (from ${VARIABLE})"
    else:
        source = f"synthetic faces (no --data): {cache / faces.FOLDER_NAME}"
    if not data or faces.is_builtin(data, cache):
        try:
            data = str(faces.ensure(cache))
        except OSError as error:
            raise FastaeError(
                f"cannot write the synthetic faces to {str(cache)!r}: {error.strerror or error}; "
                "set another folder by --cache-dir or $FASTAE_CACHE, or pass your images by --data"
            ) from None
    return open_folder(data, crop, check_records(cache), manifest=manifest), source
