"""Converts any copy of CelebA to a folder for `fastae train`: img_align_celeba/ beside the split file.

The source is the original img_align_celeba.zip, Kaggle's archive, either of them unpacked, torchvision's root
folder, or Hugging Face's parquet files. Nothing is downloaded. Images keep CelebA's names, and their size is
limited. Only regular files are read: links, devices, and names that point outside the source are skipped.
Images that were copied before are kept, so that the same command resumes an interrupted conversion.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fastae.data.files import celeba
from fastae.data.files.celeba import COUNT, IMAGE_NAME, IMAGES, MAX_ENTRY, SPLIT_NAMES, Partition, image_name
from fastae.data.files.inspect import inspect
from fastae.data.files.parquet import find_parquet, read_jpegs
from fastae.data.files.search import EntryKind, walk
from fastae.errors import FastaeError
from fastae.utils.console import track
from fastae.utils.files import atomic_write, remove_drafts

MAX_TOTAL = 1 << 32
"""The maximum size of all images together in bytes. CelebA's have 1.4 billion."""

NO_IMAGE = "contains no image named like CelebA's (000001.jpg)"


@dataclass(frozen=True)
class Preparation:
    """The result of a conversion."""

    folder: Path
    """The folder of the images."""

    present: int
    """The number of images in the folder."""

    expected: int
    """The number of images that a complete copy has."""

    faulty: list[str]
    """Names of images that are broken or do not have CelebA's size."""

    skipped: list[str]
    """Names in the source that are not regular files, or point outside it."""

    parts: tuple[int, int, int]
    """The number of images to train on, to validate on and to test on."""

    official: bool
    """Whether these parts are CelebA's official split."""

    @property
    def complete(self) -> bool:
        return self.present == self.expected and not self.faulty


def prepare_celeba(source: Path, out: Path, count: int = COUNT) -> Preparation:
    """Copies the images of `source` to `out`/img_align_celeba and the split to `out`, and verifies them.

    Nothing is written until an image is found.

    Args:
        source: a copy of CelebA in one of the forms that the module's docstring lists.
        out: the target folder.
        count: the number of images that a complete copy has.

    Raises:
        FastaeError: the source is not a copy of CelebA, or `out` cannot be written.
    """
    images, split_file = out / IMAGES, out / SPLIT_NAMES[0]
    try:
        for folder in (out, images):
            remove_drafts(folder)
        split, skipped = _take(source, images)
        names = sorted(filter(IMAGE_NAME.fullmatch, os.listdir(images)))
        official = {name: celeba.official_part(name) for name in names}
        earlier = celeba.read_split(split_file) if _is_plain(split_file) else {}
        split = {name: split.get(name, earlier.get(name, part)) for name, part in official.items()}
        _write(split_file, "".join(f"{name} {part}\n" for name, part in split.items()).encode())
        faulty = [name for name in track(names, "verifying") if _is_faulty(images / name)]
    except OSError as error:
        raise FastaeError(
            f"cannot prepare {str(out)!r}: {error.strerror or error}; repeat the command to resume"
        ) from None
    parts = Counter(split.values())
    return Preparation(
        folder=images,
        present=len(names),
        expected=count,
        faulty=faulty,
        skipped=skipped,
        parts=(parts[celeba.TRAIN], parts[celeba.VALID], parts[celeba.TEST]),
        official=split == official,
    )


def _take(source: Path, images: Path) -> tuple[Partition, list[str]]:
    """Copies the images. Returns the split ({} if the source has none) and the names that were skipped."""
    if os.path.isdir(source):
        return _take_folder(source, images)
    if os.path.isfile(source):
        return _take_zip(source, images)
    what = "is not a file" if os.path.exists(source) else "does not exist"
    raise FastaeError(f"{str(source)!r} {what}: pass img_align_celeba.zip, Kaggle's archive, or a folder")


def _take_folder(source: Path, images: Path) -> tuple[Partition, list[str]]:
    entries = list(walk(str(source), follow=False))
    paths = sorted(Path(entry.path) for entry in entries if entry.suffix == ".jpg")
    named = [path for path in paths if IMAGE_NAME.fullmatch(path.name)]
    plain = [path for path in named if _is_plain(path)]
    skipped = [str(path) for path in named if not _is_plain(path)]
    if plain:
        # The authors' unaligned images ("in the wild") have the same names.
        plain = [path for path in plain if path.parent.name == IMAGES] or plain
        _copy(((path.name, path.open("rb"), None) for path in plain), images, total=len(plain))
        return _find_split(plain[0].parent, source), skipped
    if files := find_parquet(source):
        jpegs = enumerate(read_jpegs(files), start=1)
        copies = ((image_name(number), io.BytesIO(content), part) for number, (content, part) in jpegs)
        if split := _copy(copies, images):
            return split, skipped
    links = len(skipped) + sum(entry.kind is EntryKind.LINKED_FOLDER for entry in entries)
    also = f"; skipped links and devices: {links:,}" if links else ""
    raise FastaeError(f"{str(source)!r} {NO_IMAGE}, and no parquet file with images{also}")


def _take_zip(source: Path, images: Path) -> tuple[Partition, list[str]]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries, skipped = _sort_entries(archive)
            splits = [entries.pop(name) for name in SPLIT_NAMES if name in entries]
            if not entries:
                raise FastaeError(f"{str(source)!r} {NO_IMAGE}")
            files = ((name, _open_entry(archive, entry), None) for name, entry in entries.items())
            _copy(files, images, total=len(entries))
            for entry in splits:
                with _open_entry(archive, entry) as file:
                    return celeba.parse_split(file.read(celeba.MAX_SPLIT + 1), entry.filename), skipped
    except FastaeError:
        raise
    except Exception as error:  # a decompressor may raise any error for a damaged archive
        if isinstance(error, OSError) and error.errno is not None:
            raise  # this is an error of the disk
        reason = str(error) or type(error).__name__
        raise FastaeError(f"{str(source)!r} is not a readable zip archive: {reason}") from None
    return _find_split(source.parent, source.parent), skipped


def _sort_entries(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Returns file name -> entry of the images and split files, and the names of the skipped entries."""
    entries, skipped = {}, []
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        if not IMAGE_NAME.fullmatch(path.name) and path.name not in SPLIT_NAMES:
            continue
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if the archive was not made on Unix
        if kind not in (0, stat.S_IFREG) or path.is_absolute() or ".." in path.parts:
            skipped.append(entry.filename)
        else:
            entries[path.name] = entry
    return entries, skipped


def _open_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    # Other methods may decompress any amount of data, even if little of it is read.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{entry.filename!r} has the unsupported compression {entry.compress_type}")
    return archive.open(entry)


def _copy(
    files: Iterable[tuple[str, IO[bytes], int | None]], images: Path, total: int | None = None
) -> Partition:
    """Writes files into a folder unless they exist.

    Args:
        files: the name, content, and part of the split (None if it is not known) of each file.
        images: the folder.
        total: the number of files, if it is known.

    Returns:
        The parts that are known.

    Raises:
        FastaeError: the files are too large.
    """
    copied, split = 0, {}
    for name, file, part in track(files, "copying", total):
        with file:
            content = file.read(MAX_ENTRY + 1)
        copied += len(content)
        if len(content) > MAX_ENTRY or copied > MAX_TOTAL:
            raise FastaeError(f"{name!r}, or all images together, are larger than CelebA's")
        if not _is_plain(images / name) or (images / name).read_bytes() != content:
            _write(images / name, content)
        if part is not None:
            split[name] = part
    return split


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as file:  # a lost file would be written again
        file.write(content)


def _find_split(images: Path, root: Path) -> Partition:
    """Reads the split file beside or above the images, unless it is a link. Returns {} if there is none."""
    return next((celeba.read_split(path) for path in celeba.find_splits(images, root) if _is_plain(path)), {})


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_faulty(path: Path) -> bool:
    image = inspect(str(path))
    return bool(image.fault) or (image.width, image.height) != celeba.SIZE
