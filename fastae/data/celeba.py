"""What CelebA is: its images' names, number and size, and its official split."""

from __future__ import annotations

import os
import re

from fastae.errors import FastaeError

COUNT = 202_599
SIZE = (178, 218)
"""Width and height of an aligned image."""

QUALITY = 75
"""Of every one of its JPEGs, which are baseline, 4:2:0."""

IMAGES = "img_align_celeba"
"""The folder of the aligned images, wherever the data set is unpacked."""

IMAGE_NAME = re.compile(r"[0-9]{6}\.jpg")
MAX_ENTRY = 1 << 20
"""Bytes of an image: the largest JPEG has 22 kB. More is not CelebA, and may be a decompression bomb."""

TRAIN, VALID, TEST = 0, 1, 2
LAST_TRAIN, LAST_VALID = 162_770, 182_637
"""The numbers at which the official split ends training and validation."""

MAX_SPLIT = 1 << 25
"""Bytes of list_eval_partition: CelebA's has 2.8 million."""

Split = dict[str, int]
"""Image names -> TRAIN, VALID or TEST."""


def image_name(number: int) -> str:
    """The name of image 1, 2, ...; they sort by number."""
    return f"{number:06d}.jpg"


def official_part(name: str) -> int:
    """The part of the official split that an image is in, which follows from its number."""
    number = int(name.removesuffix(".jpg"))
    return TRAIN if number <= LAST_TRAIN else VALID if number <= LAST_VALID else TEST


def parse_split(content: bytes, source: str) -> Split:
    """list_eval_partition.txt (lines of NAME 0|1|2), or Kaggle's .csv with a header and commas.

    Raises FastaeError, naming `source` and the line, for anything else.
    """
    if len(content) > MAX_SPLIT:
        raise FastaeError(f"{source!r} has more than {MAX_SPLIT:,} bytes: it is not CelebA's split")
    split = {}
    for number, line in enumerate(os.fsdecode(content).splitlines(), start=1):
        fields = line.replace(",", " ").split()
        if not fields or fields == ["image_id", "partition"]:
            continue
        if len(fields) != 2 or not IMAGE_NAME.fullmatch(fields[0]) or fields[1] not in ("0", "1", "2"):
            raise FastaeError(f"{source}:{number}: expected '000001.jpg 0|1|2', found {line!r:.80}")
        split[fields[0]] = int(fields[1])
    return split
