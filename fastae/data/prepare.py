"""CelebA as users have it, a zip archive or a folder, to a folder that `fastae train` takes.

Nothing is downloaded. An archive is unpacked file by file under the names of the data set alone, so
that no entry can leave the folder; each is bounded in size; what is there already is left, so that the
same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastae.console import track
from fastae.data.folder import PARTITION_FILE
from fastae.data.jpeg import inspect
from fastae.errors import FastaeError
from fastae.files import atomic_write

COUNT = 202_599
SIZE = (178, 218)
IMAGES = "img_align_celeba"
IMAGE_NAME = re.compile(r"[0-9]{6}\.jpg")
MAX_ENTRY = 1 << 20
"""Bytes: the largest of CelebA's images has 22 kB. More is not CelebA, and may be a zip bomb."""

MAX_TOTAL = 1 << 32
"""Bytes of an archive's images: CelebA's have 1.4 billion."""


@dataclass(frozen=True)
class Preparation:
    """folder: of the images. missing, faulty: names. partition: whether the official split is there."""

    folder: Path
    present: int
    missing: list[str]
    faulty: list[str]
    partition: bool


def prepare_celeba(archive: Path, out: Path, count: int = COUNT) -> Preparation:
    """Brings the images of `archive` into `out`/img_align_celeba and verifies names, number, sizes.

    Raises FastaeError for what is no CelebA archive or folder, or cannot be written.
    """
    images = out / IMAGES
    try:
        images.mkdir(parents=True, exist_ok=True)
        if archive.is_dir():
            _link_folder(archive, out)
        else:
            _unpack(archive, out)
        return _verify(out, count)
    except OSError as error:
        raise FastaeError(
            f"cannot prepare {str(out)!r}: {error.strerror or error}; the same command goes on from there"
        ) from None


def _unpack(path: Path, out: Path) -> None:
    if not os.path.isfile(path):  # noqa: PTH113 (pathlib's raises for a name that is too long)
        what = "is not a file" if os.path.exists(path) else "does not exist"  # noqa: PTH110
        raise FastaeError(f"{str(path)!r} {what}: give img_align_celeba.zip or a folder")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {Path(entry.filename).name: entry for entry in archive.infolist() if _wanted(entry)}
            if not any(IMAGE_NAME.fullmatch(name) for name in entries):
                raise FastaeError(f"{str(path)!r} holds no image named like CelebA's (000001.jpg)")
            if (total := sum(entry.file_size for entry in entries.values())) > MAX_TOTAL:
                raise FastaeError(f"{str(path)!r} claims {total:,} bytes in all: this is not CelebA")
            for name, entry in track(entries.items(), "unpacking", total=len(entries)):
                target = _place(out, name)
                if target.exists() and target.stat().st_size == entry.file_size:
                    continue
                with archive.open(entry) as source, atomic_write(target) as file:
                    # Read no further than the stated size: a lying header ends in an error here.
                    shutil.copyfileobj(_Bounded(source, entry.file_size, name), file)
    except FastaeError:
        raise
    except Exception as error:  # whatever zipfile and its decompressors raise over a damaged archive
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's
        reason = str(error) or type(error).__name__
        raise FastaeError(f"{str(path)!r} is not a readable zip archive: {reason}") from None


def _wanted(entry: zipfile.ZipInfo) -> bool:
    name = Path(entry.filename).name
    if name == PARTITION_FILE:
        return entry.file_size <= 32 * MAX_ENTRY
    if entry.is_dir() or not IMAGE_NAME.fullmatch(name):
        return False
    if entry.file_size > MAX_ENTRY:
        raise FastaeError(f"{entry.filename!r} claims {entry.file_size:,} bytes: this is not CelebA")
    return True


class _Bounded:
    """A reader that yields at most `size` bytes and refuses to give more."""

    def __init__(self, source: IO[bytes], size: int, name: str) -> None:
        self._source, self._left, self._name = source, size, name

    def read(self, length: int = -1, /) -> bytes:
        data = self._source.read(length)
        self._left -= len(data)
        if self._left < 0:
            raise FastaeError(f"{self._name!r} holds more than the archive says: this is not CelebA")
        return data


def _link_folder(folder: Path, out: Path) -> None:
    source = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    found = (name for name in os.listdir(source) if IMAGE_NAME.fullmatch(name))  # noqa: PTH208
    names = sorted(name for name in found if (source / name).is_file())  # no pipe, no device
    if not names:
        raise FastaeError(f"{str(source)!r} holds no image named like CelebA's (000001.jpg)")
    for name in track(names, "linking"):
        _take(source / name, _place(out, name))
    for place in (folder, source, source.parent):
        if (place / PARTITION_FILE).is_file():
            _take(place / PARTITION_FILE, _place(out, PARTITION_FILE))
            break


def _take(source: Path, target: Path) -> None:
    """A hard link where the file system can, else a copy; a target that is there already stays."""
    if target.exists():
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        with source.open("rb") as original, atomic_write(target) as copy:
            shutil.copyfileobj(original, copy)


def _place(out: Path, name: str) -> Path:
    return out / name if name == PARTITION_FILE else out / IMAGES / name


def _verify(out: Path, count: int) -> Preparation:
    images = out / IMAGES
    present = {name for name in os.listdir(images) if IMAGE_NAME.fullmatch(name)}  # noqa: PTH208
    missing = [name for name in _names(count) if name not in present]
    faulty = []
    for name in track(sorted(present), "verifying"):
        report = inspect(str(images / name))
        if report.fault or (report.width, report.height) != SIZE:
            faulty.append(name)
    return Preparation(images, len(present), missing, faulty, (out / PARTITION_FILE).is_file())


def _names(count: int) -> Iterable[str]:
    return (f"{number:06d}.jpg" for number in range(1, count + 1))
