"""Where fastae keeps what can be made again: $FASTAE_CACHE, or the user's cache folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from fastae.errors import FastaeError

VARIABLE = "FASTAE_CACHE"
OURS = ("faces-", "resident-", "checks", ".faces-", ".resident-")
"""How the names of what fastae puts there begin; a cache folder may hold other things besides."""


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    return Path(os.environ.get(VARIABLE) or platformdirs.user_cache_dir("fastae"))


def check_records(cache: Path) -> Path:
    """Where the quick check's answers are remembered."""
    return cache / "checks"


@dataclass(frozen=True)
class Entry:
    """size: bytes on disk."""

    path: Path
    size: int


def entries(cache: Path) -> list[Entry]:
    """What fastae keeps in the folder, leftovers of interrupted builds included."""
    if not cache.is_dir():
        return []
    ours = sorted(path for path in cache.iterdir() if path.name.startswith(OURS))
    return [Entry(path, _size(path)) for path in ours if path.suffix != ".lock"]


def clear(cache: Path) -> None:
    """Removes the entries. Raises FastaeError where that is not possible."""
    for entry in entries(cache):
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
        except OSError as error:
            raise FastaeError(f"cannot remove {str(entry.path)!r}: {error.strerror or error}") from None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
