"""CelebA as Hugging Face has it, parquet files whose rows hold an image each, to JPEGs.

The library `datasets` stores an image as struct<bytes: binary, path: string>, and the parts of a data set in
files named train-00000-of-00019.parquet (flwrlabs/celeba) or, on the converted branch, train/0000.parquet.
Images that were saved from pixels are PNGs, which are encoded again as CelebA's own JPEGs are. The originals'
pixels come back to 0.04 grey levels on average (60 images).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from fastae.data.files.celeba import MAX_ENTRY, QUALITY, SIZE, TEST, TRAIN, VALID
from fastae.data.files.folder import walk
from fastae.errors import FastaeError

PARTS = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "test": TEST}
"""What the name of a file, or of its folder, begins with -> the part of the split that it holds."""

ROWS = 64
READ_AHEAD = 1 << 20
"""Bytes that are read at a time; pyarrow's default is all that a row group has of a column."""

File = tuple[Path, int]
"""A parquet file, and the part of the split that it holds."""


def find_parquet(folder: Path) -> list[File]:
    """The parquet files in and below `folder`: by part of the split, then by path.

    A file may be a link, as in Hugging Face's cache: nothing but a parquet file's images is taken from it.
    Raises FastaeError if a name does not tell the part.
    """
    paths = [Path(path) for path in walk(str(folder), (".parquet",), follow=False)]
    files = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113
    return sorted(((path, _part_of(path)) for path in files), key=lambda file: (file[1], file[0]))


def read_jpegs(files: Sequence[File]) -> Iterator[tuple[bytes, int]]:
    """Every image in turn as the content of a JPEG file, and its part of the split.

    Raises FastaeError for a file that is not parquet, rows without an image, and if pyarrow is missing.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock
        for path, part in files:
            for rows in _rows(path):
                for content in pool.map(lambda row, path=path: as_jpeg(row, path), rows):
                    yield content, part


def as_jpeg(content: Any, path: Path) -> bytes:
    """A JPEG as it is, a PNG encoded as one. Raises FastaeError, naming the file, for anything else."""
    if not isinstance(content, bytes) or len(content) > MAX_ENTRY:
        raise FastaeError(f"{str(path)!r} has a row without the bytes of an image: this is not CelebA")
    if content.startswith(b"\xff\xd8"):
        return content
    jpeg = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != SIZE:
                raise ValueError(f"an image has {image.size[0]}x{image.size[1]} pixels")
            image.convert("RGB").save(jpeg, "JPEG", quality=QUALITY, subsampling="4:2:0")
    except Exception as error:  # whatever Pillow's parsers raise over a broken file
        raise FastaeError(f"{str(path)!r} holds something other than CelebA's images: {error}") from None
    return jpeg.getvalue()


def _part_of(path: Path) -> int:
    for name in (path.stem.split("-")[0], path.parent.name):
        if name in PARTS:
            return PARTS[name]
    raise FastaeError(
        f"{str(path)!r} does not tell which part of the split it holds: "
        f"its name, or its folder's, must begin with one of: {', '.join(PARTS)}"
    )


def _rows(path: Path) -> Iterator[list[Any]]:
    """The images' bytes, some rows at a time."""
    with _opened(path) as file:
        for field in file.schema_arrow:
            if str(field.type).startswith("struct<") and field.type.get_field_index("bytes") >= 0:
                break
        else:
            columns = f"{', '.join(file.schema_arrow.names[:8]):.200}"
            raise FastaeError(f"{str(path)!r} has no column of images, struct<bytes, path>, but: {columns}")
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            if group.total_byte_size > group.num_rows * MAX_ENTRY:
                raise FastaeError(f"{str(path)!r} claims {group.total_byte_size:,} bytes: this is not CelebA")
        for batch in file.iter_batches(ROWS, columns=[f"{field.name}.bytes"]):
            yield [row and row["bytes"] for row in batch.column(0).to_pylist()]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FastaeError(f"{str(path)!r} needs pyarrow, which is missing: pip install pyarrow") from None
    try:
        # Opened here: pyarrow may take a name for a remote address.
        with path.open("rb") as source, ParquetFile(source, buffer_size=READ_AHEAD) as file:
            yield file
    except FastaeError:
        raise
    except Exception as error:  # whatever pyarrow raises over a damaged file
        raise FastaeError(f"{str(path)!r} is not a readable parquet file: {error}") from None
