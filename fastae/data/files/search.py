"""Searches folders, nested or flat, for JPEGs and other files."""

from __future__ import annotations

import heapq
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from fastae.errors import FastaeError
from fastae.utils.console import counted
from fastae.utils.limits import require_files

SUFFIXES = (".jpg", ".jpeg")
ARCHIVES = {".parquet": "parquet file", ".zip": "zip archive"}
OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "jp2", "jxl", "png", "ppm", "tif", "tiff", "webp")
IGNORED = ARCHIVES | {f".{name}": f"{name.upper()} file" for name in OTHER_IMAGES}
"""Suffix -> the name under which ignored files of this kind are counted."""

PREPARE = "fastae prepare celeba {} --out DIR makes JPEGs of CelebA's archives and parquet files"


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


class Jpegs(NamedTuple):
    """The result of `find_jpegs`."""

    paths: list[str]
    """The files, sorted, and every folder that cannot be listed."""

    ignored: Counter[str]
    """Kind of file, such as "PNG file" -> number of archives and other images that are ignored."""


def find_jpegs(root: str) -> Jpegs:
    """Finds everything named like a JPEG under `root`. Links to folders are followed.

    Raises FastaeError if the folder does not exist, or contains no JPEG.
    """
    if not os.path.isdir(root):
        raise FastaeError(f"data folder {root!r} {_no_folder(root)}")
    paths, ignored = set(), Counter[str]()
    for path, suffix, kind in walk(root):
        if suffix in SUFFIXES or kind is EntryKind.UNLISTED_FOLDER:
            paths.add(path)
        elif suffix in IGNORED and kind is EntryKind.FILE:
            ignored[IGNORED[suffix]] += 1
    if not paths:
        also = f" (ignored {count_ignored(ignored)})" if ignored else ""
        remedy = ": convert the images to JPEGs" if ignored else ""
        if any(map(ignored.get, ARCHIVES.values())):
            remedy = f": {PREPARE.format(shlex.quote(root))}"
        raise FastaeError(f"no JPEG (*.jpg, *.jpeg) in {root!r} or the folders below it{also}{remedy}")
    return Jpegs(sorted(paths), ignored)


def _no_folder(path: str) -> str:
    """Returns why the path is not a data folder."""
    if not os.path.exists(path):
        return "does not exist"
    if path.lower().endswith(SUFFIXES):
        return "is a file: name the folder that it is in"
    return f"is a file: {PREPARE.format(shlex.quote(path))}"


def count_ignored(ignored: Mapping[str, int]) -> str:
    """Returns text such as '25 PNG files, 1 zip archive', with the most frequent kind first."""
    return ", ".join(counted(number, kind) for kind, number in Counter(ignored).most_common())


def walk(root: str, *, follow: bool = True) -> Iterator[Entry]:
    """Yields every entry of `root` and of the folders below it, in arbitrary order.

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
            with os.scandir(folder) as entries:
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
