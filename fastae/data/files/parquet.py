"""Converts CelebA from Hugging Face's parquet files, which have one image per row, to JPEGs.

The library `datasets` stores an image as struct<bytes: binary, path: string>, and the parts of a data set in
files named train-00000-of-00019.parquet (flwrlabs/celeba) or, on the converted branch, train/0000.parquet.
Images that were saved from pixels are PNGs. They are encoded again, like CelebA's own JPEGs, and then differ
from the original pixels by 0.04 gray levels on average (60 images).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from fastae.data.files.celeba import MAX_ENTRY, QUALITY, SIZE, TEST, TRAIN, VALID
from fastae.data.files.search import walk
from fastae.errors import FastaeError

PARTS = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "test": TEST}
"""First word of a file's name, or name of its folder -> the part of the split that the file contains."""

ROWS = 64
"""The number of images that are read at a time."""

READ_AHEAD = 1 << 20
"""The number of bytes that are read at a time. By default pyarrow reads a whole column of a row group."""

ParquetPart = tuple[Path, int]
"""A parquet file, and the part of the split that it contains."""


def find_parquet(folder: Path) -> list[ParquetPart]:
    """Finds the parquet files in and below `folder`, sorted by part of the split, then by path.

    A file may be a link, as in Hugging Face's cache, since only the images in a parquet file are read.
    Raises FastaeError if a name does not say which part of the split the file contains.
    """
    paths = [Path(entry.path) for entry in walk(str(folder), follow=False) if entry.suffix == ".parquet"]
    files = [path for path in paths if os.path.isfile(path)]
    return sorted(((path, _part_of(path)) for path in files), key=lambda file: (file[1], file[0]))


def read_jpegs(files: Sequence[ParquetPart]) -> Iterator[tuple[bytes, int]]:
    """Yields every image as the content of a JPEG file, with its part of the split.

    Raises FastaeError if a file is not parquet, a row has no image, or pyarrow is not installed.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock
        for path, part in files:
            for rows in _rows(path):
                for content in pool.map(lambda row, path=path: as_jpeg(row, path), rows):
                    yield content, part


def as_jpeg(content: Any, path: Path) -> bytes:
    """Returns a JPEG as it is and a PNG converted. For other content, raises FastaeError, naming the file."""
    if not isinstance(content, bytes) or len(content) > MAX_ENTRY:
        raise FastaeError(f"{str(path)!r} is not CelebA: a row has no image, or a huge one")
    if content.startswith(b"\xff\xd8"):
        return content
    jpeg = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != SIZE:
                raise ValueError(f"an image has {image.size[0]}x{image.size[1]} pixels")
            image.convert("RGB").save(jpeg, "JPEG", quality=QUALITY, subsampling="4:2:0")
    except Exception as error:  # Pillow's parsers may raise any error for a broken file
        raise FastaeError(f"{str(path)!r} contains something other than CelebA's images: {error}") from None
    return jpeg.getvalue()


def _part_of(path: Path) -> int:
    for name in (path.stem.split("-")[0], path.parent.name):
        if name in PARTS:
            return PARTS[name]
    raise FastaeError(
        f"{str(path)!r} does not say which part of the split it contains: "
        f"the name of the file or its folder must begin with one of: {', '.join(PARTS)}"
    )


def _rows(path: Path) -> Iterator[list[Any]]:
    """Yields the images as bytes, ROWS at a time; None for a row without an image."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FastaeError(f"reading {str(path)!r} needs pyarrow: pip install pyarrow") from None
    try:
        # The file is opened here, since pyarrow may interpret a name as a remote address.
        with path.open("rb") as source, ParquetFile(source, buffer_size=READ_AHEAD) as file:
            column = _image_column(file, path)
            for group in map(file.metadata.row_group, range(file.num_row_groups)):
                claim = group.total_byte_size
                if claim > group.num_rows * MAX_ENTRY:
                    raise FastaeError(f"{str(path)!r} claims {claim:,} bytes: this is not CelebA")
            for batch in file.iter_batches(ROWS, columns=[f"{column}.bytes"]):
                yield [row and row["bytes"] for row in batch.column(0).to_pylist()]
    except FastaeError:
        raise
    except Exception as error:  # pyarrow may raise any error for a damaged file
        raise FastaeError(f"{str(path)!r} is not a readable parquet file: {error}") from None


def _image_column(file: Any, path: Path) -> str:
    """Returns the name of the column of images. Raises FastaeError if there is none."""
    for field in file.schema_arrow:
        if str(field.type).startswith("struct<") and field.type.get_field_index("bytes") >= 0:
            return field.name
    columns = f"{', '.join(file.schema_arrow.names[:8]):.200}"
    raise FastaeError(f"{str(path)!r} has no column of images (struct<bytes, path>), only: {columns}")
