"""Divides a folder of images, nested or flat, into training files and held-out files.

If CelebA's split file (`list_eval_partition.txt` or `.csv`) is beside or above the images, its validation and
test images are held out. Otherwise the last 5 % of each folder by name are, so that every class of labelled
folders is held out. Files are skipped if their header or end shows that they cannot be trained on.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastae.data.files.celeba import TRAIN, find_splits, read_split
from fastae.data.files.check import Check, check_files, check_folder
from fastae.data.files.faults import Fault, FileFault, count_faults
from fastae.data.files.manifest import DIGESTS, Manifest, content_digest
from fastae.data.files.recovery import ImageFiles, NoneLeft
from fastae.data.files.search import name_below
from fastae.errors import FastaeError
from fastae.utils.console import counted
from fastae.utils.limits import free_bytes
from fastae.utils.paths import shell_word
from fastae.utils.sample import evenly_spaced

HELD_OUT_SHARE = 0.05

RULE = "the last 5 % of each folder by name"

FEW = 20
"""A folder with fewer images is divided together with the folder above, so that 5 % are at least one image.

The topmost folders, which name the classes of labelled data, need only two images.
"""

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

    @property
    def skipped(self) -> list[FileFault]:
        """The files that are not read, and their faults."""
        return self.checked.unusable

    @property
    def division(self) -> str:
        """How the images are divided, in words."""
        rule = self.manifest.split
        return f"{len(self.train):,} to train on, {len(self.held_out):,} held out ({rule})"

    @property
    def side(self) -> int | None:
        """The shorter side of the images in pixels, if it is the same for all."""
        return self.checked.side

    def without(self, bad: Sequence[FileFault]) -> ImageFolder:
        """The folder, divided as if the check had found these faults too.

        Raises FastaeError if fewer than two usable files remain.
        """
        sizes = self.checked.sizes.copy()
        for file in bad:
            del sizes[file.path]
        checked = replace(self.checked, sizes=sizes, faults=[*self.checked.faults, *bad])
        return _divide(self.root, checked)


def open_folder(
    root: str | Path,
    crop: int | None = None,
    records: Path | None = None,
    manifest: Manifest | None = None,
) -> ImageFolder:
    """Lists, checks and divides the images under `root`.

    Args:
        root: the data folder.
        crop: images with a side shorter than this are skipped.
        records: the folder that contains the results of earlier checks, if any.
        manifest: the manifest of the run that is resumed, if any. A lost file is replaced by the next one in
            order.

    Raises:
        FastaeError: the folder does not exist, has fewer than two usable images, has images so large that
            decoding them would exhaust the memory, or does not contain the images of the manifest.
    """
    root = os.fspath(root)
    if manifest and not os.path.isdir(root):
        raise _other_images(root, "there is no such folder")
    checked = check_loadable(root, crop, records, listed=manifest.sizes if manifest else None)
    return _restored(root, checked, manifest) if manifest else _divide(root, checked)


def check_loadable(
    root: str, crop: int | None, records: Path | None, listed: Container[str] | None = None
) -> Check:
    """Checks the images under `root` as `check_folder` does, and that decoding them fits into memory."""
    checked = check_folder(root, crop=crop, records=records, listed=listed)
    require_memory(checked, crop, f"in {root!r}")
    return checked


def check_list(paths: Sequence[str], crop: int | None = None) -> Check:
    """Checks a list of files as `open_folder` checks the files of a folder.

    Raises FastaeError if none is usable, or if decoding the images would exhaust the memory.
    """
    checked = check_files(paths, crop)
    if not checked.sizes:
        example = f", such as {paths[0]!r:.200}: {count_faults(checked.faults)}" if paths else ""
        raise FastaeError(f"no usable image among the {counted(len(paths), 'file')} of the list{example}")
    require_memory(checked, crop, "of the list")
    return checked


def require_memory(checked: Check, crop: int | None, where: str) -> None:
    """Raises FastaeError if the TOGETHER largest crops, in RGB, exceed the free memory."""
    sides = heapq.nlargest(TOGETHER, map(min, checked.shapes.elements()))
    needed, free = sum(3 * (crop or side) ** 2 for side in sides), free_bytes()
    if needed > free:
        raise FastaeError(
            f"decoding the largest images {where} takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
            "are free: set a smaller crop, or make the images smaller"
        )


def require_usable(root: str, checked: Check, least: int) -> None:
    """Raises FastaeError if a folder has fewer than `least` usable files."""
    if len(checked.sizes) < least:
        faults = count_faults(checked.unusable)
        is_cropped = any(file.fault is Fault.TOO_SMALL for file in checked.unusable)
        command = f"fastae check {shell_word(root)}{' --crop N' if is_cropped else ''}"
        skipped = f"; skipped: {faults} ({command} lists them)" if faults else ""
        needed = ", and at least 2 are needed, one to train on and one to hold out" if least > 1 else ""
        raise FastaeError(f"{root!r} contains {counted(len(checked.sizes), 'usable image')}{needed}{skipped}")


def _divide(root: str, checked: Check) -> ImageFolder:
    require_usable(root, checked, least=2)
    train, held_out, split = _split(root, checked.usable)
    sizes = [{name_below(root, path): checked.sizes[path] for path in part} for part in (train, held_out)]
    sample = evenly_spaced([*train, *held_out], DIGESTS)
    digests = {name_below(root, path): digest for path in sample if (digest := content_digest(path))}
    manifest = Manifest(split, train=sizes[0], held_out=sizes[1], digests=digests)
    return ImageFolder(root, train=train, held_out=held_out, manifest=manifest, checked=checked)


def _split(root: str, paths: list[str]) -> tuple[list[str], list[str], str]:
    """Returns the files to train on, the files to hold out, and the rule that divides them, in words."""
    rule = RULE
    # The paths are sorted: the common folder of the first and the last contains all of them.
    for file in find_splits(os.path.commonpath([paths[0], paths[-1]]), root):
        split = read_split(file)
        parts = [split.get(os.path.basename(path), TRAIN) for path in paths]
        train = [path for path, part in zip(paths, parts, strict=True) if part == TRAIN]
        held_out = [path for path, part in zip(paths, parts, strict=True) if part != TRAIN]
        if train and held_out:
            return train, held_out, file.name
        rule = f"{RULE}: {file.name} holds out {'none' if train else 'all'} of these images"
    last = _last_of_each_folder(root, paths)
    return [path for path in paths if path not in last], sorted(last), rule


def _last_of_each_folder(root: str, paths: Sequence[str]) -> set[str]:
    """Returns the last 5 % of the files of each folder, at least one of each two; the paths are sorted."""
    names = [name_below(root, path) for path in paths]
    top = os.path.commonpath(map(os.path.dirname, (names[0], names[-1])))

    def upwards(folder: str) -> Iterator[str]:
        """Yields a folder and those above it, up to the topmost ones."""
        while folder != top:
            yield folder
            folder = os.path.dirname(folder)

    folders = Counter(map(os.path.dirname, names))
    below: Counter[str] = Counter()  # folder -> the number of images in it and in the folders below
    for folder, number in folders.items():
        below.update(dict.fromkeys(upwards(folder), number))

    def divided_with(folder: str) -> str:
        for above in upwards(folder):
            if below[above] >= (2 if os.path.dirname(above) == top else FEW):
                return above
        return top

    parent = {folder: divided_with(folder) for folder in folders}
    parts: dict[str, list[str]] = {}
    for name, path in zip(names, paths, strict=True):
        parts.setdefault(parent[os.path.dirname(name)], []).append(path)
    held_out = (part[-max(1, round(HELD_OUT_SHARE * len(part))) :] for part in parts.values() if part[1:])
    return set().union(*held_out)


def _restored(root: str, checked: Check, manifest: Manifest) -> ImageFolder:
    """Divides the folder of a resumed run by its manifest. Raises FastaeError if the images differ."""
    sizes = {name_below(root, path): size for path, size in checked.sizes.items()}
    lost = [name for name in manifest.sizes if name not in sizes]
    if len(lost) > max(1, LOST_AT_MOST * len(manifest.sizes)):
        raise _other_images(root, f"{len(lost):,} of {len(manifest.sizes):,} files are missing or bad")
    for name, size in sizes.items():
        if size != manifest.sizes[name]:
            raise _other_images(root, f"{name!r:.200} no longer has {manifest.sizes[name]:,} bytes")
        digest = manifest.digests.get(name)
        if digest and content_digest(os.path.join(root, name)) != digest:
            raise _other_images(root, f"{name!r:.200} has changed since the run began")
    faults = {file.path: file.fault for file in checked.unusable}
    lost_paths = [os.path.join(root, name) for name in lost]  # as `walk` yields them
    gone = [FileFault(path, Fault.GONE) for path in lost_paths if path not in faults]
    checked = replace(checked, faults=[*checked.faults, *gone])
    faults |= {file.path: file.fault for file in gone}

    def paths_of(names: Iterable[str]) -> list[str]:
        files = ImageFiles([os.path.join(root, name) for name in names])
        files.replace({index: faults[path] for index, path in enumerate(files.own) if path in faults})
        return files.paths

    try:
        train, held_out = paths_of(manifest.train), paths_of(manifest.held_out)
    except NoneLeft:
        raise _other_images(root, "all files to train on, or all files to evaluate on, are lost") from None
    return ImageFolder(root, train=train, held_out=held_out, manifest=manifest, checked=checked)


def _other_images(root: str, why: str) -> FastaeError:
    return FastaeError(
        f"{root!r} does not hold the images of the run: {why}; restore them, or pass their folder by --data"
    )
