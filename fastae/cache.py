"""Where fastae keeps what can be made again: $FASTAE_CACHE, or the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

VARIABLE = "FASTAE_CACHE"


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    return Path(os.environ.get(VARIABLE) or platformdirs.user_cache_dir("fastae"))
