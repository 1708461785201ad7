"""Imports Matplotlib once something is drawn."""

from __future__ import annotations

from typing import Any

from fastae.errors import FastaeError


def import_matplotlib() -> Any:
    """Returns the package Matplotlib with its modules figure, patches and ticker. The import takes 0.5 s.

    If the home folder is not writable, Matplotlib warns, and keeps its list of fonts in a temporary folder.
    Raises FastaeError if no folder is writable.
    """
    try:
        import matplotlib.figure
        import matplotlib.patches
        import matplotlib.ticker
    except OSError:
        raise FastaeError("Matplotlib finds no writable folder: set MPLCONFIGDIR or TMPDIR to one") from None
    return matplotlib
