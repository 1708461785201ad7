"""Imports Matplotlib once something is drawn, with a folder that Matplotlib can write to."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import platformdirs

from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, working_entry
from fastae.utils.files import is_writable

VARIABLE = "MPLCONFIGDIR"
"""Matplotlib's variable for the folder in which it keeps its list of the system's fonts."""


def import_matplotlib() -> Any:
    """Returns the package Matplotlib with its modules figure, patches and ticker. The import takes 0.5 s.

    If Matplotlib's own folders are not writable, it keeps its list of the system's fonts in fastae's cache,
    else in a temporary folder, which it removes. Raises FastaeError if there is no writable folder at all.
    """
    if "matplotlib" not in sys.modules and not os.environ.get(VARIABLE):
        own = (platformdirs.user_config_dir("matplotlib"), platformdirs.user_cache_dir("matplotlib"))
        if not all(map(is_writable, map(Path, own))):
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would warn about these folders
            if folder := _folder_in_cache():
                os.environ[VARIABLE] = str(folder)
    try:
        import matplotlib.figure
        import matplotlib.patches
        import matplotlib.ticker
    except OSError:
        raise FastaeError(f"Matplotlib finds no writable folder: set {VARIABLE} or TMPDIR to one") from None
    return matplotlib


def _folder_in_cache() -> Path | None:
    """Returns a folder in fastae's cache, where the list of fonts is kept; None if it is not writable."""
    try:
        folder = working_entry(cache_folder() / "matplotlib", "fonts", "Matplotlib's list of fonts")
    except FastaeError:
        return None
    return folder if folder and is_writable(folder) else None
