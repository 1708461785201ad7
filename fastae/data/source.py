"""Which images a run trains on: --data, else $FASTAE_DATA, else the embedded synthetic faces."""

from __future__ import annotations

import os
from pathlib import Path

from fastae.data import faces
from fastae.data.folder import ImageFolder, open_folder
from fastae.data.manifest import Listing
from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import printable

VARIABLE = "FASTAE_DATA"


def open_source(
    data: str | None,
    crop: int | None = None,
    cache: Path | None = None,
    began_with: Listing | None = None,
) -> tuple[ImageFolder, str]:
    """The folder, opened, and where it came from in words. Draws the faces the first time.

    cache: where the faces are kept, and what is known of the files. began_with: as `open_folder` takes it.

    Raises FastaeError as `open_folder` does, and where the faces cannot be written.
    """
    cache = cache or cache_folder()
    records = check_records(cache)
    if data is not None:
        return open_folder(data, crop, records, began_with), printable(data)
    if data := os.environ.get(VARIABLE):
        return open_folder(data, crop, records, began_with), f"{printable(data)} (from ${VARIABLE})"
    try:
        root = faces.ensure(cache)
    except OSError as error:
        raise FastaeError(
            f"cannot write the synthetic faces to {str(cache)!r}: {error.strerror or error}; "
            "--cache-dir or $FASTAE_CACHE names another place, --data your own images"
        ) from None
    return open_folder(root, crop, records, began_with), f"no --data, so synthetic faces in {root}"
