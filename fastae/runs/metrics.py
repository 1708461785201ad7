"""metrics.csv in a run's folder: a row per log step and a row per evaluation, appended as the run proceeds.

The file is UTF-8, comma-separated, with one header line. A row's `kind` is "train" (the batch of the row's
iteration) or "held_out" (the held-out images after this iteration); a cell is empty if its column does not
apply to the kind. The iterations of a kind ascend. `loss_index` is the mean squared error x 1e7, `data_wait`
a share of the time in [0, 1], `psnr` is in dB, and `ssim` is in [-1, 1]. Older versions of fastae wrote no
`ssim`.
"""

from __future__ import annotations

import io
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastae.utils.files import atomic_write, open_own, require_file

NAME = "metrics.csv"
TRAIN, HELD_OUT = "train", "held_out"
COLUMNS = (
    "loss", "loss_index", "images_per_second", "data_wait", "step_p50_ms", "step_p95_ms", "psnr", "ssim",
    "grad_norm",
)  # fmt: skip
"""The columns after `iteration` and `kind`."""

HEADER = ",".join(("iteration", "kind", *COLUMNS)).encode() + b"\n"

MAX_BYTES, MAX_LINE = 1 << 26, 1 << 10
"""The most bytes of a file and of a line that are read. 64 MiB are some 600,000 log steps."""

MAX_RESUMED = 1 << 30
"""The most bytes of a file that a run continues: ten million log steps."""

MAX_VALUE = 1e30
"""Larger numbers are read as infinite: no plot can show them."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kind."""

    iterations: np.ndarray
    """The rows' iterations: int64 (n,), ascending."""

    values: Mapping[str, np.ndarray]
    """Name of a column -> its values: float64 (n,). NaN is an empty cell."""

    def last(self, column: str) -> float:
        """Returns the value in the last row; nan if there is no row."""
        return float(self.values[column][-1]) if len(self.iterations) else math.nan


@dataclass(frozen=True)
class Metrics:
    """The content of a metrics.csv."""

    train: Rows
    held_out: Rows

    damaged: int
    """The number of lines that were skipped because they are not valid rows."""

    @property
    def iteration(self) -> int:
        """The last logged iteration; 0 if there is none."""
        return int(max(rows.iterations.max(initial=0) for rows in (self.train, self.held_out)))

    def seconds(self, batch_size: int) -> float:
        """Returns the training time of all sessions: the sum of the seconds of `windows`."""
        return float(self.windows(batch_size)[1].sum())

    def windows(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and the seconds between log steps, both float64 (n,), from the logged speed.

        The seconds consist of steps and waiting for data, without start, evaluations and saving. Log steps
        without a valid speed are skipped.
        """
        rates = self.train.values["images_per_second"]
        images = np.diff(self.train.iterations, prepend=0) * float(batch_size)
        known = np.isfinite(rates) & (rates > 1e-9) & (images > 0)
        return images[known], images[known] / rates[known]

    def images_per_second(self, batch_size: int) -> float:
        """Returns the speed of a whole run: the images of all log steps by their seconds; nan if unknown.

        If there are several log steps, the slowest does not count, since it warms up and compiles.
        """
        images, seconds = self.windows(batch_size)
        if len(images) > 1:
            kept = np.arange(len(images)) != np.argmin(images / seconds)
            images, seconds = images[kept], seconds[kept]
        return float(images.sum() / seconds.sum()) if seconds.sum() > 0 else math.nan


class MetricsWriter(AbstractContextManager):
    """Appends rows to a metrics.csv."""

    def __init__(self, path: Path, start: int = 0) -> None:
        """Opens the file, and removes all but its valid rows up to `start`.

        Args:
            path: the file, which need not exist.
            start: the iteration that the run continues from; 0 keeps no rows.

        Raises:
            OSError: the disk is full, or `path` is not a file. The file is then as it was before.
        """
        old = _read(path, MAX_RESUMED) if start and path.exists() else b""
        valid = (line for line, row in _rows(old, COLUMNS) if row and row.iteration <= start)
        with atomic_write(path) as new:
            new.write(HEADER + b"".join(valid))
        self._file = open_own(path, "a")

    def append(self, iteration: int, kind: str, **values: float) -> None:
        """Appends a row, which other processes can read when this returns.

        `values` has names of COLUMNS; another one is a KeyError, so that no metric is lost in silence.
        """
        if unknown := values.keys() - set(COLUMNS):
            raise KeyError(f"metrics.csv has no column {', '.join(sorted(unknown))}")
        # Nine digits are enough to write a float32 exactly.
        cells = (f"{values[name]:.9g}" if name in values else "" for name in COLUMNS)
        line = ",".join((str(iteration), kind, *cells)).encode() + b"\n"
        self._file.write(line)
        self._file.flush()

    def sync(self) -> None:
        """Flushes the file to the disk."""
        os.fsync(self._file.fileno())

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a row that could not be written has been reported
            self._file.close()


def read_metrics(path: Path) -> Metrics:
    """Reads a metrics.csv, which anybody may have written.

    Lines that are not valid rows, or whose iteration does not ascend, are skipped. Raises OSError if the file
    cannot be read, and ValueError if it is not a metrics.csv or is too large.
    """
    content = _read(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    header, newline, lines = content.partition(b"\n")
    names = header.decode("ascii", "replace").split(",") if newline else []
    if names[:2] != ["iteration", "kind"] or not set(names[2:]) <= set(COLUMNS):
        raise ValueError("its header is not that of metrics.csv")
    cells = {TRAIN: array("d"), HELD_OUT: array("d")}
    damaged = 0
    for line, row in _rows(lines, columns=names[2:]):
        if row:
            cells[row.kind].extend((row.iteration, *row.values))
        else:
            damaged += line.endswith(b"\n")  # a line without an end is being written
    return Metrics(_as_arrays(cells[TRAIN]), _as_arrays(cells[HELD_OUT]), damaged)


def _read(path: Path, limit: int) -> bytes:
    """Returns the first `limit` bytes of a file. Raises OSError if it cannot be read."""
    require_file(path)
    with path.open("rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))  # `read` allocates what it may return


@dataclass(frozen=True)
class _Row:
    iteration: int
    kind: str

    values: Sequence[float]
    """A value for each of COLUMNS; NaN if the cell is empty, or if the file does not have the column."""


def _rows(content: bytes, columns: Sequence[str]) -> Iterator[tuple[bytes, _Row | None]]:
    """Yields the lines of a file without its header, each with its row.

    The row is None if the line is not a valid row, or if its iteration does not ascend. A line of more than
    MAX_LINE bytes is yielded in pieces.
    """
    last = {TRAIN: -1, HELD_OUT: -1}
    file = io.BytesIO(content)
    while line := file.readline(MAX_LINE):
        row = _parse(line, columns)
        if row and row.iteration > last[row.kind]:
            last[row.kind] = row.iteration
            yield line, row
        else:
            yield line, None


def _parse(line: bytes, columns: Sequence[str]) -> _Row | None:
    """Returns the row in a line; None if the line is not a complete row."""
    try:
        iteration, kind, *texts = line.decode("ascii").strip().split(",")
        cells = dict(zip(columns, texts, strict=True))
        row = _Row(int(iteration), kind, [float(cells.get(name) or "nan") for name in COLUMNS])
    except ValueError:
        return None
    is_valid = line.endswith(b"\n") and kind in (TRAIN, HELD_OUT) and 0 <= row.iteration < 1 << 53
    return row if is_valid else None


def _as_arrays(cells: array[float]) -> Rows:
    """Returns rows from their numbers, row by row: the iteration, then a value for each of COLUMNS."""
    iterations, *values = np.array(cells).reshape(-1, 1 + len(COLUMNS)).T
    shown = (np.where(np.abs(each) > MAX_VALUE, np.copysign(np.inf, each), each) for each in values)
    return Rows(iterations.astype(np.int64), dict(zip(COLUMNS, shown, strict=True)))
