"""Divides a folder of JPEGs, nested or flat, into training files and held-out files.

If CelebA's split file (`list_eval_partition.txt` or `.csv`) is beside or above the images, its validation and
test images are held out. Otherwise the last 5 % of the files by name are. Files are skipped if their header
or end shows that they cannot be trained on.
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
"""Suffix -> the name under which `walk` counts ignored files of this kind."""

LINKED_FOLDER = "linked folder"
_PREPARE = "fastae prepare celeba {} --out DIR makes JPEGs of CelebA's archives and parquet files"
_CONVERT = (
    """python -c "import sys, pathlib, PIL.Image; [PIL.Image.open(p).convert('RGB').save"""
    """(p.with_suffix('.jpg'), quality=95) for p in pathlib.Path(sys.argv[1]).rglob('*') """
    """if p.suffix.lower() == '.{}']" {} makes JPEGs of them"""
)
"""The command uses Pillow, which is always installed, rather than ImageMagick, which may not be."""

CONVERTIBLE = tuple(name for name in OTHER_IMAGES if name not in ("heic", "jxl"))
"""The formats that Pillow reads without a plug-in."""

HELD_OUT_SHARE = 0.05

TOGETHER = 256
"""The number of decoded images that a loader holds at the same time, as measured with batches of 64."""

LOST_AT_MOST = 0.01
"""The largest share of a run's files that may be lost. If more are lost, this is another data set.

One lost file is always accepted.
"""


@dataclass(frozen=True)
class ImageFolder:
    """A data folder, divided into training and held-out files. Paths are strings, to save memory."""

    root: str

    train: list[str]
    """The files to train on, in the manifest's order. A file that was lost is replaced by another."""

    held_out: list[str]
    """The files to evaluate on, in the manifest's order. A file that was lost is replaced by another."""

    manifest: Manifest
    """The files by name and size, as they were when the run began."""

    checked: Check
    """The result of the check. The lost files of a resumed run are among its faults."""

    ignored: Mapping[str, int] = field(default_factory=dict)
    """Kind of ignored file, such as "PNG file" -> number of files."""

    @property
    def skipped(self) -> list[FileFault]:
        """The files that are not read, and their faults."""
        return self.checked.unusable

    @property
    def side(self) -> int | None:
        """The shorter side of the images in pixels, if it is the same for all."""
        return self.checked.side

    def without(self, bad: Sequence[FileFault]) -> ImageFolder:
        """The folder, divided as if the check had found these faults too.

        Raises FastaeError if fewer than two usable files remain.
        """
        sizes = self.checked.sizes.copy()
        for each in bad:
            del sizes[each.path]
        checked = replace(self.checked, sizes=sizes, faults=[*self.checked.faults, *bad])
        return replace(_divide(self.root, checked), ignored=self.ignored)


def open_folder(
    root: str | Path,
    crop: int | None = None,
    records: Path | None = None,
    manifest: Manifest | None = None,
) -> ImageFolder:
    """Lists, checks and divides the JPEGs under `root`.

    Args:
        root: the data folder.
        crop: images with a side shorter than this are skipped.
        records: the folder that contains the results of earlier checks, if any.
        manifest: the manifest of the run that is resumed, if any. A lost file is replaced by the next one in
            order.

    Raises:
        FastaeError: the folder does not exist, has fewer than two usable JPEGs, has images so large that
            decoding them would exhaust the memory, or does not contain the images of the manifest.
    """
    root = expand_home(os.fspath(root))
    ignored = Counter[str]()
    if manifest and not os.path.isdir(root):  # noqa: PTH112
        raise _other_images(root, "there is no such folder")
    paths = find_jpegs(root, ignored)
    if manifest:  # it only selects from the files that were found, so it cannot name files elsewhere
        listed = manifest.sizes
        paths = [path for path in paths if name_below(root, path) in listed]
    checked = check(root, paths, crop=crop, records=records)
    folder = _restored(root, checked, manifest) if manifest else _divide(root, checked)
    _require_memory(checked, crop, f"in {root!r}")
    return replace(folder, ignored=ignored)


def check_list(paths: Sequence[str], crop: int | None = None) -> Check:
    """Checks a list of files as `open_folder` checks the files of a folder.

    Raises FastaeError if none is usable, or if decoding the images would exhaust the memory.
    """
    checked = check("", paths, crop=crop, records=None)
    if not checked.sizes:
        first = "".join(f" ({each.path!r:.200}: {each.fault.value})" for each in checked.faults[:1])
        raise FastaeError(f"no usable JPEG among the {counted(len(paths), 'file')} of the list{first}")
    _require_memory(checked, crop, "of the list")
    return checked


def _require_memory(checked: Check, crop: int | None, where: str) -> None:
    """Raises FastaeError if the TOGETHER largest crops, in RGB, exceed the free memory."""
    sides = heapq.nlargest(TOGETHER, map(min, checked.shapes.elements()))
    needed, free = sum(3 * (crop or side) ** 2 for side in sides), free_bytes()
    if needed > free:
        raise FastaeError(
            f"decoding the largest images {where} takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
            "are free: set a smaller crop, or make the images smaller"
        )


def name_below(root: str, path: str) -> str:
    """The name of a file relative to `root`."""
    return path.removeprefix(root).lstrip("/")


def find_jpegs(root: str, ignored: Counter[str] | None = None) -> list[str]:
    """Finds every file named like a JPEG under `root`, and every folder that cannot be listed.

    Args:
        root: the data folder. Links to folders are followed.
        ignored: counts archives and other images (see `walk`).

    Returns:
        The paths, sorted.

    Raises:
        FastaeError: the folder does not exist, or contains no JPEG.
    """
    if not os.path.isdir(root):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        raise FastaeError(f"data folder {root!r} {_no_folder(root)}")
    ignored = Counter() if ignored is None else ignored
    found = set(walk(root, SUFFIXES, ignored))
    if not found:
        also = f" (ignored {count_ignored(ignored)})" if ignored else ""
        raise FastaeError(
            f"no JPEG (*.jpg, *.jpeg) in {root!r} or the folders below it{also}{_conversion(root, ignored)}"
        )
    return sorted(found)


def _no_folder(path: str) -> str:
    """Returns why the path is not a data folder."""
    if not os.path.exists(path):  # noqa: PTH110
        return "does not exist"
    if path.lower().endswith(SUFFIXES):
        return "is a file: name the folder that it is in"
    return f"is a file: {_PREPARE.format(shlex.quote(path))}"


def _conversion(root: str, ignored: Mapping[str, int]) -> str:
    """Returns ': ' and a command that converts the ignored files to JPEGs; '' if there is none."""
    folder = shlex.quote(root)
    if any(map(ignored.get, ARCHIVES.values())):
        return f": {_PREPARE.format(folder)}"
    name = max(CONVERTIBLE, key=lambda name: ignored.get(KINDS[f".{name}"], 0))
    return f": {_CONVERT.format(name, folder)}" if ignored.get(KINDS[f".{name}"]) else ""


def walk(
    root: str, suffixes: tuple[str, ...], ignored: Counter[str] | None = None, *, follow: bool = True
) -> Iterator[str]:
    """Yields every file with one of these suffixes under `root`, and every folder that cannot be listed.

    The order is arbitrary. Each real folder is read once, even if links lead to it: by its path without links
    if it is below `root`, else through the link whose path sorts first. A link to a folder above `root` would
    be a loop, and is not followed.

    Args:
        root: the folder to search.
        suffixes: suffixes in lower case, with the dot.
        ignored: counts archives and other images, as "PNG file" for example.
        follow: whether links to folders are followed. If not, `ignored` counts them.

    Raises:
        FastaeError: `root` itself cannot be listed, or the process has too many files open.
    """
    ignored = Counter() if ignored is None else ignored
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
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    # DirEntry.is_dir would raise an error for a loop of links.
                    is_link = entry.is_symlink() and os.path.isdir(entry.path)  # noqa: PTH112
                    kind = LINKED_FOLDER if is_link else KINDS.get(suffix)
                    if suffix in suffixes:
                        yield entry.path
                    if entry.is_dir(follow_symlinks=False) or (is_link and follow):
                        heapq.heappush(folders, (is_linked or is_link, entry.path))
                    elif kind and suffix not in suffixes:
                        ignored[kind] += 1
        except OSError as error:
            require_files(error)
            if folder == root:
                raise FastaeError(f"folder {root!r} cannot be read: {error.strerror}") from None
            yield folder


def _identity(folder: str) -> tuple[int, int] | None:
    """The device and inode of a folder, which identify it; None if they are unknown."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def count_ignored(ignored: Mapping[str, int]) -> str:
    """Returns text such as '25 PNG files, 1 zip archive', with the most frequent kind first."""
    return ", ".join(counted(number, kind) for kind, number in Counter(ignored).most_common())


def count_faults(faults: Sequence[FileFault]) -> str:
    """Returns text such as '3 truncated, 1 empty', with the most frequent fault first."""
    counts = Counter(each.fault.value for each in faults).most_common()
    return ", ".join(f"{number} {fault}" for fault, number in counts)


def _divide(root: str, checked: Check) -> ImageFolder:
    if len(checked.usable) < 2:
        faults = count_faults(checked.unusable)
        is_cropped = any(each.fault is Fault.TOO_SMALL for each in checked.unusable)
        command = f"fastae check {shlex.quote(root)}{' --crop N' if is_cropped else ''}"
        skipped = f"; skipped: {faults} ({command} lists them)" if faults else ""
        raise FastaeError(
            f"{root!r} contains {counted(len(checked.usable), 'usable JPEG')}, and at least 2 are needed, "
            f"one to train on and one to hold out{skipped}"
        )
    train, held_out, split = _split(root, checked.usable)
    sizes = [{name_below(root, path): checked.sizes[path] for path in part} for part in (train, held_out)]
    sample = evenly_spaced([*train, *held_out], DIGESTS)
    digests = {name_below(root, path): digest for path in sample if (digest := content_digest(path))}
    manifest = Manifest(split, train=sizes[0], held_out=sizes[1], digests=digests)
    return ImageFolder(root, train=train, held_out=held_out, manifest=manifest, checked=checked)


def _split(root: str, paths: list[str]) -> tuple[list[str], list[str], str]:
    """Returns the files to train on, the files to hold out, and the rule that divides them, in words."""
    rule = "the last 5 % by name"
    # The paths are sorted: the common folder of the first and the last contains all of them.
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


def _restored(root: str, checked: Check, manifest: Manifest) -> ImageFolder:
    """Divides the folder of a resumed run by its manifest. Raises FastaeError if the images differ."""
    found = {name_below(root, path): size for path, size in checked.sizes.items()}
    listed = manifest.sizes
    lost = [name for name in listed if name not in found]
    if len(lost) > max(1, LOST_AT_MOST * len(listed)):
        raise _other_images(root, f"{len(lost):,} of {len(listed):,} files are missing or bad")
    for name, size in found.items():
        if size != listed[name]:
            raise _other_images(root, f"{name!r:.200} no longer has {listed[name]:,} bytes")
        digest = manifest.digests.get(name)
        if digest and content_digest(_path(root, name)) != digest:
            raise _other_images(root, f"{name!r:.200} has changed since the run began")
    unusable = {each.path for each in checked.unusable}
    gone = [path for path in (_path(root, name) for name in lost) if path not in unusable]
    checked = replace(checked, faults=[*checked.faults, *(FileFault(path, Fault.GONE) for path in gone)])
    faults = {each.path: each.fault for each in checked.unusable}

    def paths_of(names: Iterable[str]) -> list[str]:
        files = ImageFiles([_path(root, name) for name in names])
        files.replace({index: faults[path] for index, path in enumerate(files.own) if path in faults})
        return files.paths

    try:
        train, held_out = paths_of(manifest.train), paths_of(manifest.held_out)
    except NoneLeft:
        raise _other_images(root, "all files to train on, or all files to evaluate on, are lost") from None
    return ImageFolder(root, train=train, held_out=held_out, manifest=manifest, checked=checked)


def _path(root: str, name: str) -> str:
    """The path of a file with this name below `root`, as `walk` yields it."""
    return os.path.join(root, name)  # noqa: PTH118


def _other_images(root: str, why: str) -> FastaeError:
    return FastaeError(
        f"{root!r} does not hold the images of the run: {why}; restore them, or pass their folder by --data"
    )
