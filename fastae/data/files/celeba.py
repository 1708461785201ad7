"""CelebA's file names, number and size of images, and its official split into train, validation and test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastae.errors import FastaeError

COUNT = 202_599
SIZE = (178, 218)
"""Width and height of an aligned image."""

QUALITY = 75
"""JPEG quality of every image; all are baseline, 4:2:0."""

IMAGES = "img_align_celeba"
"""The folder of the aligned images, wherever the data set is unpacked."""

IMAGE_NAME = re.compile(r"[0-9]{6}\.jpg")
MAX_ENTRY = 1 << 20
"""Bytes of an image: the largest JPEG has 22 kB. More is not CelebA, and may be a decompression bomb."""

TRAIN, VALID, TEST = 0, 1, 2
LAST_TRAIN, LAST_VALID = 162_770, 182_637
"""The numbers of the last training and the last validation image in the official split."""

SPLIT_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")
"""The authors' (lines of NAME 0|1|2) and Kaggle's (with commas and a header)."""

MAX_SPLIT = 1 << 25
"""Bytes of a split's file: CelebA's has 2.8 million."""

Split = dict[str, int]
"""Image names -> TRAIN, VALID or TEST."""


def image_name(number: int) -> str:
    """The name of image 1, 2, ...; names sort by number."""
    return f"{number:06d}.jpg"


def official_part(name: str) -> int:
    """The part of the official split that an image is in, which follows from its number."""
    number = int(name.removesuffix(".jpg"))
    return TRAIN if number <= LAST_TRAIN else VALID if number <= LAST_VALID else TEST


def find_splits(images: str | Path, root: str | Path) -> Iterator[Path]:
    """The split files beside a folder of images at or below `root`, and above it; the nearest first.

    The search ends two folders above `root`. torchvision has the file one folder above the images, Kaggle
    two, the authors in a folder Eval beside the one that holds the images' folder.
    """
    folder, top = Path(os.path.abspath(images)), Path(os.path.abspath(root))  # noqa: PTH100
    for place in (folder, *folder.parents[: len(folder.relative_to(top).parts) + 2]):
        for path in (place / below / name for below in ("", "Eval") for name in SPLIT_NAMES):
            if os.path.isfile(path):  # noqa: PTH113 (pathlib's raises for a folder that is closed to us)
                yield path


def read_split(path: Path) -> Split:
    """Raises FastaeError if the file cannot be read or holds anything else."""
    try:
        with path.open("rb") as file:
            return parse_split(file.read(MAX_SPLIT + 1), str(path))
    except OSError as error:
        raise FastaeError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def parse_split(content: bytes, source: str) -> Split:
    """A split file's content, for images of any names. Raises FastaeError, naming `source` and the line."""
    if len(content) > MAX_SPLIT:
        raise FastaeError(f"{source!r} has more than {MAX_SPLIT:,} bytes: it is not CelebA's split")
    split = {}
    for number, line in enumerate(os.fsdecode(content).splitlines(), start=1):
        fields = line.replace(",", " ").split()
        if not fields or fields == ["image_id", "partition"]:
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise FastaeError(f"{source}:{number}: expected 'NAME 0|1|2', found {line!r:.80}")
        split[fields[0]] = int(fields[1])
    return split
