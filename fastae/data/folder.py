"""A folder of JPEGs, nested or flat, as two lists of files: to train on, and held out.

The split is CelebA's own where its `list_eval_partition.txt` lies beside the images or one folder up
(0 is for training; 1 and 2, validation and test, are held out); else the last 5 % by name are held out.
Files whose header or end shows that they cannot be trained on are skipped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastae.data.check import Check, FileFault, check
from fastae.data.jpeg import Fault
from fastae.data.manifest import Manifest
from fastae.data.memory import free_bytes
from fastae.data.recovery import ImageFiles, NoneLeft
from fastae.errors import FastaeError

SUFFIXES = (".jpg", ".jpeg")
PARTITION_FILE = "list_eval_partition.txt"
MAX_PARTITION = 1 << 25
"""Bytes of that file: CelebA's has 2.8 million."""

HELD_OUT_SHARE = 0.05

LOST_AT_MOST = 0.01
"""The share of a run's files whose loss is an accident; more, and it is another data set. One is always."""


@dataclass(frozen=True)
class ImageFolder:
    """Paths are strings, in the order of `manifest`: 200,000 of them are cheap.

    manifest: the files by name, as they were when the run began; the path of one that was lost since is its
    replacement's. skipped: files that are not read, and why. side: the shorter side of the images in pixels
    where all have the same, which spares looking for it in each header.
    """

    root: str
    train: list[str]
    held_out: list[str]
    manifest: Manifest
    skipped: list[FileFault]
    side: int | None

    def without(self, bad: Sequence[FileFault]) -> ImageFolder:
        """The folder divided as if the check had found that these cannot be used. Raises FastaeError."""
        sizes, unusable = self.manifest.sizes, {finding.path for finding in bad}
        paths = sorted({*self.train, *self.held_out} - unusable)
        left = {path: sizes[name_below(self.root, path)] for path in paths}
        return _divide(self.root, Check(left, [*self.skipped, *bad], self.side, heaviest=0), crop=None)


def open_folder(
    root: str | Path,
    crop: int | None = None,
    records: Path | None = None,
    manifest: Manifest | None = None,
) -> ImageFolder:
    """Lists, checks and divides the JPEGs under `root`.

    crop: images with a shorter side are skipped. records: where what is known of the files is kept.
    manifest: of a run that is resumed; a file that was lost is replaced by the next in order.
    Raises FastaeError if there is no such folder, fewer than two usable JPEGs in it, images so large
    that decoding them would exhaust the memory, or other images than a run began with.
    """
    root = os.fspath(root)
    paths = find_jpegs(root)
    if manifest:  # only what is there and listed: a manifest from elsewhere opens nothing outside the folder
        listed = manifest.sizes
        paths = [path for path in paths if name_below(root, path) in listed]
    checked = check(root, paths, crop=crop, records=records)
    folder = _as_begun(root, checked, manifest) if manifest else _divide(root, checked, crop)
    if checked.heaviest > (free := free_bytes(torch.device("cpu"))):
        raise FastaeError(
            f"the largest images in {root!r} take {checked.heaviest / 1e9:.1f} GB when batches of them are "
            f"decoded, and {free / 1e9:.1f} GB are free: --crop cuts less out of them, or make them smaller"
        )
    return folder


def name_below(root: str, path: str) -> str:
    """The name of a file in or below `root`, wherever that lies."""
    return path.removeprefix(root).lstrip("/")


def find_jpegs(root: str) -> list[str]:
    """Everything named like a JPEG under `root`, sorted by path, and every folder that cannot be listed.

    Links to folders are not followed. Raises FastaeError if there is no such folder, or nothing in it.
    """
    if not os.path.isdir(root):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        what = "is a file, not a folder" if os.path.exists(root) else "does not exist"  # noqa: PTH110
        raise FastaeError(f"data folder {root!r} {what}")
    found = set(walk(root, SUFFIXES))
    if not found:
        raise FastaeError(f"no JPEG (*.jpg, *.jpeg) in {root!r} or the folders below it")
    return sorted(found)


def walk(root: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """What is named so in and below `root`, and every folder that cannot be listed, in any order.

    Links to folders are not followed. Raises FastaeError if `root` itself cannot be listed.
    """
    folders = [root]  # a list, since folders may be nested deeper than calls may
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.lower().endswith(suffixes):
                        yield entry.path
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            if folder == root:
                raise FastaeError(f"folder {root!r} cannot be read: {error.strerror}") from None
            yield folder


def count_faults(findings: Sequence[FileFault]) -> str:
    """'3 truncated, 1 empty': the most frequent first."""
    counts = Counter(finding.fault.value for finding in findings)
    return ", ".join(f"{number} {fault}" for fault, number in counts.most_common())


def _too_few(root: str, usable: int, unusable: Sequence[FileFault], crop: int | None) -> str:
    message = f"{root!r} holds {usable} usable JPEG{'' if usable == 1 else 's'}, and 2 are the least"
    if unusable:
        of_crop = f" {crop}" if crop else ""
        message += (
            f"; skipped: {count_faults(unusable).replace('the crop', f'--crop{of_crop}')} "
            f"(fastae check {root!r} names them)"
        )
    return message


def _divide(root: str, checked: Check, crop: int | None) -> ImageFolder:
    if len(checked.usable) < 2:
        raise FastaeError(_too_few(root, len(checked.usable), checked.unusable, crop))
    train, held_out, split = _split(root, checked.usable)
    manifest = Manifest(
        split, *({name_below(root, path): checked.sizes[path] for path in part} for part in (train, held_out))
    )
    return ImageFolder(root, train, held_out, manifest, checked.unusable, checked.side)


def _split(root: str, paths: list[str]) -> tuple[list[str], list[str], str]:
    """What to train on, what to hold out, and the rule."""
    for place in (Path(root), Path(root).parent):
        partition = place / PARTITION_FILE
        if partition.is_file():
            held_names = _held_out_names(partition)
            train = [path for path in paths if os.path.basename(path) not in held_names]  # noqa: PTH119
            held_out = [path for path in paths if os.path.basename(path) in held_names]  # noqa: PTH119
            if train and held_out:
                return train, held_out, PARTITION_FILE
    number = max(1, round(HELD_OUT_SHARE * len(paths)))
    return paths[:-number], paths[-number:], "the last 5 % by name"


def _as_begun(root: str, checked: Check, manifest: Manifest) -> ImageFolder:
    there = {name_below(root, path): path for path in checked.usable}
    listed = manifest.sizes
    lost = [name for name in listed if name not in there]
    if len(lost) > max(1, LOST_AT_MOST * len(listed)):
        raise _other(root, f"{len(lost):,} of {len(listed):,} files are missing or bad")
    for name, path in there.items():
        if checked.sizes[path] != listed[name]:
            raise _other(root, f"{name!r:.200} had {listed[name]:,} bytes")
    found = {name_below(root, finding.path): finding.fault for finding in checked.unusable}
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
        f"{root!r} is not what the run trains on: {why}; restore them there, or resume with --data FOLDER"
    )


def _held_out_names(partition: Path) -> set[str]:
    try:
        with partition.open("rb") as file:
            content = file.read(MAX_PARTITION + 1)
    except OSError as error:
        raise FastaeError(f"{str(partition)!r} cannot be read: {error.strerror}") from None
    if len(content) > MAX_PARTITION:
        raise FastaeError(f"{str(partition)!r} is too large for CelebA's partition: {MAX_PARTITION:,} bytes")
    held = set()
    for number, line in enumerate(os.fsdecode(content).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise FastaeError(f"{partition}:{number}: expected 'NAME 0|1|2', found {line!r:.80}")
        if fields[1] != "0":
            held.add(fields[0])
    return held
