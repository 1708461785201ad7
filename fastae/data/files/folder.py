"""A folder of JPEGs, nested or flat, as two lists of files: to train on, and held out.

If CelebA's split file (`list_eval_partition.txt` or `.csv`) lies beside the images or above them, its
validation and test images are held out; else the last 5 % by name are. Files whose header or end shows that
they cannot be trained on are skipped.
"""

from __future__ import annotations

import heapq
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastae.data.files.celeba import TRAIN, find_splits, read_split
from fastae.data.files.check import Check, check
from fastae.data.files.jpeg import Fault, FileFault
from fastae.data.files.manifest import DIGESTS, Manifest, content_digest
from fastae.data.files.recovery import ImageFiles, NoneLeft
from fastae.errors import FastaeError
from fastae.utils.console import counted
from fastae.utils.limits import free_bytes, require_files
from fastae.utils.paths import expand_home
from fastae.utils.sample import evenly_spaced

SUFFIXES = (".jpg", ".jpeg")
OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "jp2", "jxl", "png", "ppm", "tif", "tiff", "webp")
ARCHIVES = {".parquet": "parquet file", ".zip": "zip archive"}
KINDS = ARCHIVES | {f".{name}": f"{name.upper()} file" for name in OTHER_IMAGES}
"""What `walk` counts when it is not wanted, by suffix."""

LINKED_FOLDER = "linked folder"
_PREPARE = "fastae prepare celeba {} --out DIR makes JPEGs of CelebA's archives and parquet files"
_CONVERT = (
    """python -c "import sys, pathlib, PIL.Image; [PIL.Image.open(p).convert('RGB').save"""
    """(p.with_suffix('.jpg'), quality=95) for p in pathlib.Path(sys.argv[1]).rglob('*') """
    """if p.suffix.lower() == '.{}']" {} makes JPEGs of them"""
)
"""Pillow is always there, ImageMagick is not."""

CONVERTIBLE = tuple(name for name in OTHER_IMAGES if name not in ("heic", "jxl"))
"""What Pillow opens without a plug-in."""

HELD_OUT_SHARE = 0.05

LOST_AT_MOST = 0.01
"""The share of a run's files whose loss is an accident; more, and it is another data set. One is always."""


@dataclass(frozen=True)
class ImageFolder:
    """Paths are strings, in the order of `manifest`: 200,000 of them are cheap.

    manifest: the files by name, as they were when the run began; the path of one that was lost since is its
    replacement's. skipped: files that are not read, and why. side: the shorter side of the images in pixels
    if all have the same, which spares looking for it in each header. ignored: as `walk` counts it.
    """

    root: str
    train: list[str]
    held_out: list[str]
    manifest: Manifest
    skipped: list[FileFault]
    side: int | None
    ignored: Mapping[str, int] = field(default_factory=dict)

    def without(self, bad: Sequence[FileFault]) -> ImageFolder:
        """The folder divided as if the check had found that these cannot be used. Raises FastaeError."""
        sizes, unusable = self.manifest.sizes, {each.path for each in bad}
        paths = sorted({*self.train, *self.held_out} - unusable)
        left = {path: sizes[name_below(self.root, path)] for path in paths}
        checked = Check(left, [*self.skipped, *bad], self.side, heaviest=0)
        return replace(_divide(self.root, checked), ignored=self.ignored)


def open_folder(
    root: str | Path,
    crop: int | None = None,
    records: Path | None = None,
    manifest: Manifest | None = None,
) -> ImageFolder:
    """Lists, checks and divides the JPEGs under `root`.

    crop: images with a shorter side are skipped. records: the folder that keeps what is known of the files.
    manifest: of a run that is resumed; a file that was lost is replaced by the next in order.
    Raises FastaeError if there is no such folder, fewer than two usable JPEGs in it, images so large
    that decoding them would exhaust the memory, or other images than a run began with.
    """
    root = expand_home(os.fspath(root))
    ignored = Counter[str]()
    if manifest and not os.path.isdir(root):  # noqa: PTH112
        raise _other(root, "there is no such folder")
    paths = find_jpegs(root, ignored)
    if manifest:  # only what is there and listed: a manifest from elsewhere opens nothing outside the folder
        listed = manifest.sizes
        paths = [path for path in paths if name_below(root, path) in listed]
    checked = check(root, paths, crop=crop, records=records)
    folder = _as_begun(root, checked, manifest) if manifest else _divide(root, checked)
    _require_memory(checked, f"in {root!r}")
    return replace(folder, ignored=ignored)


def check_list(paths: Sequence[str], crop: int | None = None) -> Check:
    """Checks files that no folder was searched for, as `open_folder` does.

    Raises FastaeError if none is usable, and for images so large that decoding them would exhaust the memory.
    """
    checked = check("", paths, crop=crop, records=None)
    if not checked.sizes:
        first = "".join(f" ({each.path!r:.200}: {each.fault.value})" for each in checked.faults[:1])
        raise FastaeError(f"no usable JPEG among the {counted(len(paths), 'file')} of the list{first}")
    _require_memory(checked, "of the list")
    return checked


def _require_memory(checked: Check, where: str) -> None:
    if checked.heaviest > (free := free_bytes()):
        raise FastaeError(
            f"the largest images {where} take {checked.heaviest / 1e9:.1f} GB when batches of them are "
            f"decoded, and {free / 1e9:.1f} GB are free: a crop cuts less out of them, or make them smaller"
        )


def name_below(root: str, path: str) -> str:
    """The name of a file in or below `root`, wherever that lies."""
    return path.removeprefix(root).lstrip("/")


def find_jpegs(root: str, ignored: Counter[str] | None = None) -> list[str]:
    """Everything named like a JPEG under `root`, sorted by path, and every folder that cannot be listed.

    ignored: as `walk`, which follows links, counts it. Raises FastaeError if there is no such folder, or
    nothing in it.
    """
    if not os.path.isdir(root):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        raise FastaeError(f"data folder {root!r} {_no_folder(root)}")
    ignored = Counter() if ignored is None else ignored
    found = set(walk(root, SUFFIXES, ignored))
    if not found:
        also = f" ({count_ignored(ignored)} ignored)" if ignored else ""
        raise FastaeError(
            f"no JPEG (*.jpg, *.jpeg) in {root!r} or the folders below it{also}{_conversion(root, ignored)}"
        )
    return sorted(found)


def _no_folder(path: str) -> str:
    """What is wrong with the path of a data folder that is none."""
    if not os.path.exists(path):  # noqa: PTH110
        return "does not exist"
    if path.lower().endswith(SUFFIXES):
        return "is a file: name the folder that it is in"
    return f"is a file: {_PREPARE.format(shlex.quote(path))}"


def _conversion(root: str, ignored: Mapping[str, int]) -> str:
    """': ' and the command that makes JPEGs of what a folder without JPEGs holds; '' if there is none."""
    folder = shlex.quote(root)
    if any(map(ignored.get, ARCHIVES.values())):
        return f": {_PREPARE.format(folder)}"
    name = max(CONVERTIBLE, key=lambda name: ignored.get(KINDS[f".{name}"], 0))
    return f": {_CONVERT.format(name, folder)}" if ignored.get(KINDS[f".{name}"]) else ""


def walk(
    root: str, suffixes: tuple[str, ...], ignored: Counter[str] | None = None, *, follow: bool = True
) -> Iterator[str]:
    """Everything with these suffixes under `root`, and every folder that cannot be listed, in any order.

    Each real folder is read once. A link to one is followed if no path without links leads there, nor one
    through a link that comes before it by name; a link to a folder above `root` is a loop, and is not.

    ignored: counts archives and other images, as "PNG file". follow: otherwise no link to a folder is
    followed, and `ignored` counts them.
    Raises FastaeError if `root` itself cannot be listed, or if the process has too many files open.
    """
    ignored = Counter() if ignored is None else ignored
    above = Path(os.path.realpath(root)).parents
    known = {_identity(os.fspath(folder)) for folder in above} if follow else set()
    # Whether links lead there, and the path: those without links come first. A heap, and no recursion, since
    # folders may be nested deeper than calls may.
    folders = [(False, root)]
    while folders:
        is_linked, folder = heapq.heappop(folders)
        if follow and (identity := _identity(folder)):
            if identity in known:
                continue
            known.add(identity)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    is_wanted = suffix in suffixes
                    if is_wanted:
                        yield entry.path
                    # Of a link, DirEntry.is_dir raises an error for a loop.
                    is_link = entry.is_symlink() and os.path.isdir(entry.path)  # noqa: PTH112
                    if entry.is_dir(follow_symlinks=False) or (is_link and follow):
                        heapq.heappush(folders, (is_linked or is_link, entry.path))
                    elif not is_wanted and suffix in KINDS:
                        ignored[KINDS[suffix]] += 1
                    elif not is_wanted and is_link:
                        ignored[LINKED_FOLDER] += 1
        except OSError as error:
            require_files(error)
            if folder == root:
                raise FastaeError(f"folder {root!r} cannot be read: {error.strerror}") from None
            yield folder


def _identity(folder: str) -> tuple[int, int] | None:
    """What tells a folder from all others, whatever links lead to it; None if nothing does."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def count_ignored(ignored: Mapping[str, int]) -> str:
    """'25 PNG files, 1 zip archive': the most frequent first."""
    return ", ".join(counted(number, kind) for kind, number in Counter(ignored).most_common())


def count_faults(faults: Sequence[FileFault]) -> str:
    """'3 truncated, 1 empty': the most frequent first."""
    counts = Counter(each.fault.value for each in faults).most_common()
    return ", ".join(f"{number} {fault}" for fault, number in counts)


def _divide(root: str, checked: Check) -> ImageFolder:
    if len(checked.usable) < 2:
        faults = count_faults(checked.unusable)
        skipped = f"; skipped: {faults} (fastae check {shlex.quote(root)} names them)" if faults else ""
        raise FastaeError(
            f"{root!r} holds {counted(len(checked.usable), 'usable JPEG')}, and at least 2 are needed, "
            f"one to train on and one to hold out{skipped}"
        )
    train, held_out, split = _split(root, checked.usable)
    sizes = [{name_below(root, path): checked.sizes[path] for path in part} for part in (train, held_out)]
    sample = evenly_spaced([*train, *held_out], DIGESTS)
    digests = {name_below(root, path): digest for path in sample if (digest := content_digest(path))}
    manifest = Manifest(split, sizes[0], sizes[1], digests)
    return ImageFolder(root, train, held_out, manifest, checked.unusable, checked.side)


def _split(root: str, paths: list[str]) -> tuple[list[str], list[str], str]:
    """What to train on, what to hold out, and the rule."""
    rule = "the last 5 % by name"
    # The deepest folder of the first and the last path in order holds all those between them.
    for file in find_splits(os.path.commonpath([paths[0], paths[-1]]), root):
        split = read_split(file)
        parts = [split.get(os.path.basename(path), TRAIN) for path in paths]  # noqa: PTH119
        train = [path for path, part in zip(paths, parts, strict=True) if part == TRAIN]
        held_out = [path for path, part in zip(paths, parts, strict=True) if part != TRAIN]
        if train and held_out:
            return train, held_out, file.name
        rule = f"the last 5 % by name: {file.name} holds out {'none' if train else 'all'} of these images"
    number = max(1, round(HELD_OUT_SHARE * len(paths)))
    return paths[:-number], paths[-number:], rule


def _as_begun(root: str, checked: Check, manifest: Manifest) -> ImageFolder:
    """The folder of a run that is resumed."""
    there = {name_below(root, path): path for path in checked.usable}
    listed = manifest.sizes
    lost = [name for name in listed if name not in there]
    if len(lost) > max(1, LOST_AT_MOST * len(listed)):
        raise _other(root, f"{len(lost):,} of {len(listed):,} files are missing or bad")
    for name, path in there.items():
        if checked.sizes[path] != listed[name]:
            raise _other(root, f"{name!r:.200} had {listed[name]:,} bytes")
        if name in manifest.digests and content_digest(path) != manifest.digests[name]:
            raise _other(root, f"{name!r:.200} has another content than when the run began")
    found = {name_below(root, each.path): each.fault for each in checked.unusable}
    faults = {name: found.get(name, Fault.GONE) for name in lost}

    def paths_of(names: Iterable[str]) -> list[str]:
        names = list(names)
        files = ImageFiles([there.get(name, f"{root}/{name}") for name in names])
        files.replace({index: faults[name] for index, name in enumerate(names) if name in faults})
        return files.paths

    try:
        train, held_out = paths_of(manifest.train), paths_of(manifest.held_out)
    except NoneLeft:
        raise _other(root, "no file is left to train on, or none to evaluate on") from None
    skipped = [FileFault(f"{root}/{name}", fault) for name, fault in faults.items()]
    return ImageFolder(root, train, held_out, manifest, skipped, checked.side)


def _other(root: str, why: str) -> FastaeError:
    return FastaeError(
        f"{root!r} does not hold the images of the run: {why}; restore them, or name their folder by --data"
    )
