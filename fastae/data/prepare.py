"""CelebA as users have it, to a folder that `fastae train` takes: img_align_celeba/ and the split beside it.

Taken are the original img_align_celeba.zip, Kaggle's archive, either of them unpacked, torchvision's root,
and Hugging Face's parquet files. Nothing is downloaded. Images are written under the data set's own names,
each bounded in size, and from plain files alone: links, devices and names that lead elsewhere are skipped.
What is there already stays, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastae.data.celeba import (
    COUNT,
    IMAGE_NAME,
    IMAGES,
    MAX_ENTRY,
    MAX_SPLIT,
    SIZE,
    TEST,
    TRAIN,
    VALID,
    Split,
    image_name,
    official_part,
    parse_split,
)
from fastae.data.folder import PARTITION_FILE
from fastae.data.jpeg import inspect
from fastae.data.parquet import File, count_rows, find_parquet, read_jpegs
from fastae.errors import FastaeError
from fastae.utils.console import track
from fastae.utils.files import atomic_write

MAX_TOTAL = 1 << 32
"""Bytes of an archive's images: CelebA's have 1.4 billion."""

SPLIT_NAMES = (PARTITION_FILE, "list_eval_partition.csv")
PLACES = ("", IMAGES, f"{IMAGES}/{IMAGES}", f"celeba/{IMAGES}", f"Img/{IMAGES}")
"""Where the images are in a folder: of images, torchvision's, Kaggle's, above torchvision's, the authors'."""

Entries = dict[str, zipfile.ZipInfo]


@dataclass(frozen=True)
class Preparation:
    """folder: of the images. present: their number. missing: those of CelebA's names, if all were expected.

    faulty: names of broken images and of those with another size. skipped: what was not a plain file.
    parts: images to train on, to validate and to test on. official: whether these parts are CelebA's own.
    """

    folder: Path
    present: int
    expected: int
    missing: list[str]
    faulty: list[str]
    skipped: list[str]
    parts: tuple[int, int, int]
    official: bool

    @property
    def complete(self) -> bool:
        return self.present == self.expected and not self.faulty


@dataclass
class Taken:
    """split: as the source states it; empty where it does not. skipped: names."""

    split: Split = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def prepare_celeba(source: Path, out: Path, count: int = COUNT) -> Preparation:
    """Brings the images of `source` into `out`/img_align_celeba, the split into `out`, and verifies them.

    count: images that there should be, whatever their names. Raises FastaeError for a source that is none of
    CelebA's forms, and where `out` cannot be written; nothing is written before an image was found.
    """
    try:
        taken = _take(source, out)
        names = sorted(name for name in os.listdir(out / IMAGES) if IMAGE_NAME.fullmatch(name))  # noqa: PTH208
        by_number = {name: official_part(name) for name in names}
        split = by_number | _read_split(out / PARTITION_FILE) | taken.split
        lines = "".join(f"{name} {part}\n" for name, part in sorted(split.items()))
        _write(out / PARTITION_FILE, lines.encode())
        faulty = [name for name in track(names, "verifying") if _is_faulty(out / IMAGES / name)]
    except OSError as error:
        raise FastaeError(
            f"cannot prepare {str(out)!r}: {error.strerror or error}; the same command resumes there"
        ) from None
    all_names = {image_name(number) for number in range(1, COUNT + 1)}
    parts = Counter(split[name] for name in names)
    return Preparation(
        folder=out / IMAGES,
        present=len(names),
        expected=count,
        missing=sorted(all_names.difference(names)) if count == COUNT else [],
        faulty=faulty,
        skipped=taken.skipped,
        parts=(parts[TRAIN], parts[VALID], parts[TEST]),
        official=by_number.items() <= split.items(),
    )


def _take(source: Path, out: Path) -> Taken:
    if not os.path.isdir(source):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        return _unpack(source, out)
    skipped: list[str] = []
    for place in PLACES:
        images = source / place
        names = _list_images(source, images, skipped)
        if names:
            for name in track(names, "linking"):
                _link(images / name, out / IMAGES / name)
            return Taken(_find_split(images), skipped)
    if files := find_parquet(source):
        return _unpack_parquet(files, out)
    message = f"{str(source)!r} holds no image named like CelebA's (000001.jpg), and no parquet file"
    if skipped:
        message += f"; links and devices are not taken: {skipped[0]!r:.100} and {len(skipped) - 1:,} more"
    raise FastaeError(message)


def _list_images(root: Path, images: Path, skipped: list[str]) -> list[str]:
    """The images in a folder at or below `root`; adds to `skipped` what only is named like one."""
    if Path(os.path.realpath(images)) != Path(os.path.realpath(root), images.relative_to(root)):
        skipped.append(str(images))  # a link on the way there
        return []
    if not images.is_dir():
        return []
    names = []
    with os.scandir(images) as entries:
        for entry in entries:
            if not IMAGE_NAME.fullmatch(entry.name):
                continue
            if not entry.is_file(follow_symlinks=False):
                skipped.append(entry.path)
                continue
            if (size := entry.stat(follow_symlinks=False).st_size) > MAX_ENTRY:
                raise FastaeError(f"{entry.path!r} has {size:,} bytes: this is not CelebA")
            names.append(entry.name)
    return sorted(names)


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system can, else a copy."""
    if _has_size(target, source.lstat().st_size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _write(target, source.read_bytes())


def _unpack(path: Path, out: Path) -> Taken:
    if not os.path.isfile(path):  # noqa: PTH113 (as above)
        what = "is not a file" if os.path.exists(path) else "does not exist"  # noqa: PTH110
        raise FastaeError(f"{str(path)!r} {what}: give img_align_celeba.zip, Kaggle's archive, or a folder")
    try:
        with zipfile.ZipFile(path) as archive:
            images, splits, skipped = _sort_entries(archive)
            if not images:
                raise FastaeError(f"{str(path)!r} holds no image named like CelebA's (000001.jpg)")
            if (total := sum(entry.file_size for entry in images.values())) > MAX_TOTAL:
                raise FastaeError(f"{str(path)!r} claims {total:,} bytes in all: this is not CelebA")
            for name, entry in track(images.items(), "unpacking", total=len(images)):
                if not _has_size(out / IMAGES / name, entry.file_size):
                    _write(out / IMAGES / name, _read_entry(archive, entry, MAX_ENTRY))
            named = next((splits[name] for name in SPLIT_NAMES if name in splits), None)
            split = parse_split(_read_entry(archive, named, MAX_SPLIT), named.filename) if named else {}
    except FastaeError:
        raise
    except Exception as error:  # whatever zipfile and its decompressors raise over a damaged archive
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's
        reason = str(error) or type(error).__name__
        raise FastaeError(f"{str(path)!r} is not a readable zip archive: {reason}") from None
    return Taken(split or _find_split(path.absolute().parent), skipped)


def _sort_entries(archive: zipfile.ZipFile) -> tuple[Entries, Entries, list[str]]:
    """The entries of images and of the split, by the last part of their names, and those that are skipped."""
    images: Entries = {}
    splits: Entries = {}
    skipped = []
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        if not IMAGE_NAME.fullmatch(path.name) and path.name not in SPLIT_NAMES:
            continue
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where it was not made on Unix
        if kind not in (0, stat.S_IFREG) or path.is_absolute() or ".." in path.parts:
            skipped.append(entry.filename)
        else:
            (splits if path.name in SPLIT_NAMES else images)[path.name] = entry
    return images, splits, skipped


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    if entry.file_size > limit:
        raise FastaeError(f"{entry.filename!r} claims {entry.file_size:,} bytes: this is not CelebA")
    if entry.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # the others' output has no bounds
        raise zipfile.BadZipFile(f"{entry.filename!r} is compressed by method {entry.compress_type}")
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _unpack_parquet(files: list[File], out: Path) -> Taken:
    split: Split = {}
    total = 0
    images = track(read_jpegs(files), "unpacking", total=count_rows(files))
    for number, (content, part) in enumerate(images, start=1):
        split[image_name(number)] = part
        if (total := total + len(content)) > MAX_TOTAL:
            raise FastaeError(f"{str(files[0][0].parent)!r} holds more than CelebA has: {total:,} bytes")
        target = out / IMAGES / image_name(number)
        # By content: the number of an image depends on which files are there.
        if not _has_size(target, len(content)) or target.read_bytes() != content:
            _write(target, content)
    if not split:
        raise FastaeError(f"{str(files[0][0].parent)!r} holds parquet files without rows")
    return Taken(split)


def _find_split(folder: Path) -> Split:
    """The split that lies beside a folder of images or an archive, where users have it; {} for none."""
    above = folder.absolute().parent
    for place in (folder, above, above.parent, above / "Eval", above.parent / "Eval"):
        for name in SPLIT_NAMES:
            if split := _read_split(place / name):
                return split
    return {}


def _read_split(path: Path) -> Split:
    """{} where there is no such file, or a link."""
    if path.is_symlink() or not path.is_file():
        return {}
    with path.open("rb") as file:
        return parse_split(file.read(MAX_SPLIT + 1), str(path))


def _is_faulty(path: Path) -> bool:
    report = inspect(str(path))
    return bool(report.fault) or (report.width, report.height) != SIZE


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(
        path, durable=False
    ) as file:  # 200,000 times; a torn one has another size, and is redone
        file.write(content)
