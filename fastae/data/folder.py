"""A folder of JPEGs, nested or flat, as two lists of files: to train on, and held out.

The split is CelebA's own where its `list_eval_partition.txt` lies beside the images or one folder up
(0 is for training; 1 and 2, validation and test, are held out); else the last 5 % by name are held out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastae.errors import FastaeError

SUFFIXES = (".jpg", ".jpeg")
PARTITION_FILE = "list_eval_partition.txt"
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class ImageFolder:
    """Paths are strings, sorted by name: 200,000 of them are cheap.

    split: the rule that divided them, in words.
    """

    root: str
    train: list[str]
    held_out: list[str]
    split: str


def open_folder(root: str | Path, crop: int | None = None) -> ImageFolder:
    """Lists and divides the JPEGs under `root`.

    Raises FastaeError where there is no such folder, it has fewer than two JPEGs, or one of them is
    too small for `crop`.
    """
    root = os.fspath(root)
    if not Path(root).is_dir():
        what = "is a file, not a folder" if Path(root).exists() else "does not exist"
        raise FastaeError(f"data folder {root!r} {what}")
    paths = find_jpegs(root)
    if not paths:
        raise FastaeError(f"no JPEG (*.jpg, *.jpeg) in {root!r} or the folders below it")
    if len(paths) < 2:
        raise FastaeError(f"{root!r} holds 1 JPEG; 2 are the least, one of them to be held out")
    if crop is not None:
        _require_size(paths, crop)
    return _divide(root, paths)


def find_jpegs(root: str) -> list[str]:
    """Every file named like a JPEG under `root`, sorted by path."""
    found = []
    for folder, _, names in os.walk(root):
        found += [f"{folder}/{name}" for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def _divide(root: str, paths: list[str]) -> ImageFolder:
    for place in (Path(root), Path(root).parent):
        partition = place / PARTITION_FILE
        if partition.is_file():
            held_names = _held_out_names(partition)
            train = [path for path in paths if os.path.basename(path) not in held_names]  # noqa: PTH119
            held_out = [path for path in paths if os.path.basename(path) in held_names]  # noqa: PTH119
            if train and held_out:
                return ImageFolder(root, train, held_out, PARTITION_FILE)
    number = max(1, round(HELD_OUT_SHARE * len(paths)))
    return ImageFolder(root, paths[:-number], paths[-number:], "the last 5 % by name")


def _held_out_names(partition: Path) -> set[str]:
    held = set()
    for number, line in enumerate(partition.read_text().splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise FastaeError(f"{partition}:{number}: expected 'NAME 0|1|2', found {line!r:.80}")
        if fields[1] != "0":
            held.add(fields[0])
    return held


def _require_size(paths: list[str], crop: int) -> None:
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except OSError as error:
            raise FastaeError(f"{path!r} cannot be read as an image: {error}") from None
        if min(width, height) < crop:
            raise FastaeError(
                f"{path!r} is {width}x{height}, too small for --crop {crop}: "
                "use a smaller crop, or take the image away"
            )
