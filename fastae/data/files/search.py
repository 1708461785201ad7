"""Searches folders, nested or flat, for files."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from fastae.errors import FastaeError
from fastae.utils.limits import require_files
from fastae.utils.paths import shell_word

PREPARE = "fastae prepare celeba {} --out DIR makes JPEGs of CelebA's archives and parquet files"
ARCHIVES = (".parquet", ".zip")
RUN_FILES = ("config.json", "images.json")
"""The files that every run's folder has."""


class EntryKind(Enum):
    """What an entry of a folder is."""

    FILE = "a file, or a pipe or device"
    FOLDER = "a folder, or a link to one, which is searched too"
    LINKED_FOLDER = "a link to a folder, which is not followed"
    UNLISTED_FOLDER = "a folder that cannot be listed"


class Entry(NamedTuple):
    """An entry of a folder."""

    path: str

    suffix: str
    """The end of its name in lower case, with the dot."""

    kind: EntryKind


def find_files(root: str) -> list[str]:
    """Returns every file under `root`, and every folder that cannot be listed, sorted.

    Links to folders are followed. Raises FastaeError if the folder does not exist.
    """
    if not os.path.isdir(root):
        raise FastaeError(f"data folder {root!r} {_no_folder(root)}")
    return sorted({entry.path for entry in walk(root) if entry.kind is not EntryKind.FOLDER})


def no_images(root: str, files: Sequence[str]) -> FastaeError:
    """Returns the error for a folder whose files contain no image."""
    remedy = f": {PREPARE.format(shell_word(root))}" if any(map(_is_archive, files)) else ""
    return FastaeError(f"no JPEG or PNG in {root!r} or the folders below it{remedy}")


def name_below(root: str, path: str) -> str:
    """The name of a file relative to `root`."""
    return path.removeprefix(root).lstrip("/")


def _is_archive(path: str) -> bool:
    return path.lower().endswith(ARCHIVES)


def _no_folder(path: str) -> str:
    """Returns why the path is not a data folder."""
    if not os.path.exists(path):
        return "does not exist"
    if _is_archive(path):
        return f"is a file: {PREPARE.format(shell_word(path))}"
    return "is a file: name the folder that it is in"


def walk(root: str, *, follow: bool = True) -> Iterator[Entry]:
    """Yields every entry of `root` and of the folders below it, in arbitrary order, except hidden ones.

    Names that begin with a dot are hidden: drafts of a killed process, thumbnails, a file manager's notes.
    The folders of runs, which hold pictures of the data set, are not searched.
    Each real folder is read once, even if links lead to it: by its path without links if it is below `root`,
    else through the link whose path sorts first. A link to a folder above `root` would be a loop, and is not
    followed.

    Args:
        root: the folder to search.
        follow: whether links to folders are followed.

    Raises:
        FastaeError: `root` itself cannot be listed, or the process has too many files open.
    """
    known = {_identity(os.fspath(folder)) for folder in Path(os.path.realpath(root)).parents}
    # A heap of (is reached through a link, path), so that paths without links come first. Recursion would
    # fail for folders that are nested deeper than Python's recursion limit.
    folders = [(False, root)]
    while folders:
        is_linked, folder = heapq.heappop(folders)
        if identity := _identity(folder):
            if identity in known:
                continue
            known.add(identity)
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
            if folder != root and sum(entry.name in RUN_FILES for entry in entries) == len(RUN_FILES):
                continue
            for entry in entries:
                kind, is_link = _kind(entry, follow)
                yield Entry(entry.path, os.path.splitext(entry.name)[1].lower(), kind)
                if kind is EntryKind.FOLDER:
                    heapq.heappush(folders, (is_linked or is_link, entry.path))
        except OSError as error:
            require_files(error)
            if folder == root:
                raise FastaeError(f"folder {root!r} cannot be read: {error.strerror}") from None
            yield Entry(folder, "", EntryKind.UNLISTED_FOLDER)


def _kind(entry: os.DirEntry[str], follow: bool) -> tuple[EntryKind, bool]:
    """Returns what an entry is, and whether it is a link."""
    if not entry.is_symlink():
        return EntryKind.FOLDER if entry.is_dir() else EntryKind.FILE, False
    # DirEntry.is_dir would raise an error for a loop of links.
    if not os.path.isdir(entry.path):
        return EntryKind.FILE, True
    return EntryKind.FOLDER if follow else EntryKind.LINKED_FOLDER, True


def _identity(folder: str) -> tuple[int, int] | None:
    """The device and inode of a folder, which identify it; None if they are unknown."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None
