"""Facts about CelebA: its file names, the number and size of its images, and its official split."""

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
"""JPEG quality of every image. All are baseline JPEGs with 4:2:0 chroma subsampling."""

IMAGES = "img_align_celeba"
"""The name of the folder of aligned images."""

IMAGE_NAME = re.compile(r"[0-9]{6}\.jpg")
MAX_ENTRY = 1 << 20
"""The maximum bytes of an image file. CelebA's largest has 22 kB; larger ones may be decompression bombs."""

TRAIN, VALID, TEST = 0, 1, 2
LAST_TRAIN, LAST_VALID = 162_770, 182_637
"""The numbers of the last training and the last validation image in the official split."""

SPLIT_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")
"""The split files of the authors (lines "NAME 0|1|2") and of Kaggle (with commas and a header)."""

MAX_SPLIT = 1 << 25
"""The maximum size of a split file in bytes. CelebA's has 2.8 million."""

Partition = dict[str, int]
"""Image names -> TRAIN, VALID or TEST."""


def image_name(number: int) -> str:
    """The file name of an image, for numbers from 1. Names sort by number."""
    return f"{number:06d}.jpg"


def official_part(name: str) -> int:
    """Returns an image's part of the official split (TRAIN, VALID or TEST), by the number in its name."""
    number = int(name.removesuffix(".jpg"))
    return TRAIN if number <= LAST_TRAIN else VALID if number <= LAST_VALID else TEST


def find_splits(images: str | Path, root: str | Path) -> Iterator[Path]:
    """Yields the split files beside and above a folder of images, nearest first.

    The folder is `root` or below it, and the search ends two folders above `root`. torchvision puts the
    file one folder above the images, and Kaggle two. The authors put it into a folder Eval, which is beside
    the parent of the images' folder.
    """
    folder, top = Path(os.path.abspath(images)), Path(os.path.abspath(root))
    for parent in (folder, *folder.parents[: len(folder.relative_to(top).parts) + 2]):
        for path in (parent / below / name for below in ("", "Eval") for name in SPLIT_NAMES):
            if os.path.isfile(path):
                yield path


def read_split(path: Path) -> Partition:
    """Reads a split file. Raises FastaeError if it cannot be read or is not a split file."""
    try:
        with path.open("rb") as file:
            return parse_split(file.read(MAX_SPLIT + 1), str(path))
    except OSError as error:
        raise FastaeError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def parse_split(content: bytes, source: str) -> Partition:
    """Parses the content of a split file. The images may have any names.

    Raises FastaeError, which names `source` and the line, if a line is invalid or the content is too large.
    """
    if len(content) > MAX_SPLIT:
        raise FastaeError(f"{source!r} has more than {MAX_SPLIT:,} bytes: it is not CelebA's split")
    split = {}
    for number, line in enumerate(os.fsdecode(content).splitlines(), start=1):
        parts = line.split(",") if "," in line else line.rsplit(maxsplit=1)
        fields = [part.strip() for part in parts]
        if not any(fields) or fields == ["image_id", "partition"]:
            continue
        if len(fields) != 2 or not fields[0] or fields[1] not in ("0", "1", "2"):
            raise FastaeError(f"{source}:{number}: expected 'NAME 0|1|2', found {line!r:.80}")
        split[fields[0]] = int(fields[1])
    return split
