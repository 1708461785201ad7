"""metrics.csv in a run's folder: a row per log step and a row per evaluation, appended as the run proceeds.

The file is UTF-8, comma-separated, with one header line. A row's `kind` is "train" (the batch of the row's
iteration) or "held_out" (the held-out images after this iteration); a cell is empty if its column does not
apply to the kind. The iterations of a kind ascend. `loss_index` is the mean squared error x 1e7, `data_wait`
a share of the time in [0, 1], `psnr` is in dB, and `ssim` is in [-1, 1]. Older versions of fastae wrote no
`ssim`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastae.utils.files import atomic_write, open_own, require_file

NAME = "metrics.csv"
TRAIN, HELD_OUT = "train", "held_out"
METRICS = (
    "loss", "loss_index", "images_per_second", "data_wait", "step_p50_ms", "step_p95_ms", "psnr", "ssim",
    "grad_norm",
)  # fmt: skip

HEADER = ",".join(("iteration", "kind", *METRICS)).encode() + b"\n"

MAX_BYTES, MAX_LINE = 1 << 26, 1 << 10
"""The most bytes of a file and of a line that are read. 64 MiB are some 600,000 log steps."""

MAX_VALUE = 1e30
"""Larger numbers are read as infinite: no plot can show them."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kind."""

    iterations: np.ndarray
    """The rows' iterations: int64 (n,), ascending."""

    values: Mapping[str, np.ndarray]
    """Name of a column -> its values: float64 (n,). NaN is an empty cell."""

    def up_to(self, iteration: int) -> Rows:
        """Returns the rows up to an iteration, included."""
        kept = self.iterations <= iteration
        return Rows(self.iterations[kept], {name: values[kept] for name, values in self.values.items()})


@dataclass(frozen=True)
class Metrics:
    """The content of a metrics.csv."""

    train: Rows
    held_out: Rows

    damaged: int
    """The number of lines that were skipped because they are not valid rows."""

    def up_to(self, iteration: int) -> Metrics:
        """Returns the rows up to an iteration, included. A run that continues from there keeps them."""
        return Metrics(self.train.up_to(iteration), self.held_out.up_to(iteration), self.damaged)

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


@dataclass(frozen=True)
class LoggedContent:
    """The content of metrics.csv when a checkpoint was written."""

    size: int
    """The number of bytes."""

    sha256: str
    """The SHA-256 of these bytes, in hexadecimal."""


class MetricsWriter(AbstractContextManager):
    """Appends rows to a metrics.csv. Rows after the iteration that a run continues from are removed first.

    `is_damaged` is whether the file had changed since the checkpoint. Its valid rows are then kept.
    """

    def __init__(self, path: Path, start: int = 0, content: LoggedContent | None = None) -> None:
        """Opens the file.

        Args:
            path: the file, which need not exist.
            start: the iteration up to which rows are kept; 0 keeps none.
            content: the file's content at `start`, from the checkpoint. Everything after it is removed.

        Raises:
            OSError: the disk is full, or `path` is not a file. The file is then as it was before.
        """
        old = b""
        if start and path.exists():
            require_file(path)
            with path.open("rb") as file:
                old = file.read(MAX_BYTES)
        kept = old[: content.size] if content else b""
        self.is_damaged = content is not None and hashlib.sha256(kept).hexdigest() != content.sha256
        if content is None or self.is_damaged:
            rows = _rows(io.BytesIO(old.removeprefix(HEADER)), METRICS)
            kept = HEADER + b"".join(line for line, row in rows if row and row[0] <= start)
        with atomic_write(path) as new:
            new.write(kept)
        self._size, self._digest = len(kept), hashlib.sha256(kept)
        self._file = open_own(path, "a")

    def append(self, iteration: int, kind: str, **metrics: float) -> None:
        """Appends a row, which other processes can read when this returns. `metrics` has names of METRICS."""
        # Nine digits are enough to write a float32 exactly.
        cells = (f"{metrics[name]:.9g}" if name in metrics else "" for name in METRICS)
        line = ",".join((str(iteration), kind, *cells)).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        self._digest.update(line)

    def sync(self) -> LoggedContent:
        """Flushes the file to the disk, and returns its content."""
        os.fsync(self._file.fileno())
        return LoggedContent(self._size, self._digest.hexdigest())

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a row that could not be written has been reported
            self._file.close()


def read_metrics(path: Path) -> Metrics:
    """Reads a metrics.csv, which anybody may have written.

    Lines that are not valid rows, or whose iteration does not ascend, are skipped. Raises OSError if the file
    cannot be read, and ValueError if it is not a metrics.csv or is too large.
    """
    require_file(path)
    cells = {TRAIN: array("d"), HELD_OUT: array("d")}
    damaged = 0
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        columns = _columns(file.readline(MAX_LINE))
        for line, row in _rows(file, columns):
            if row:
                iteration, kind, values = row
                cells[kind].extend((iteration, *values))
            else:
                damaged += line.endswith(b"\n")  # a line without an end is being written
    return Metrics(_table(cells[TRAIN], columns), _table(cells[HELD_OUT], columns), damaged)


def _columns(header: bytes) -> tuple[str, ...]:
    """Returns the metrics that a header names. Raises ValueError if it is not that of a metrics.csv."""
    if header == HEADER:
        return METRICS
    if header == HEADER.replace(b",ssim", b""):  # of an older version
        return tuple(name for name in METRICS if name != "ssim")
    raise ValueError("its header is not that of metrics.csv")


Row = tuple[int, str, list[float]]
"""Iteration, kind, and the values in the order of the columns."""


def _rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[tuple[bytes, Row | None]]:
    """Yields each line of an open file with its row; None if it is no valid row, or does not ascend.

    A line of more than MAX_LINE bytes is yielded in pieces.
    """
    last = {TRAIN: -1, HELD_OUT: -1}
    for line in iter(lambda: file.readline(MAX_LINE), b""):
        row = _parse(line, columns)
        if row and row[0] > last[row[1]]:
            last[row[1]] = row[0]
            yield line, row
        else:
            yield line, None


def _parse(line: bytes, columns: Sequence[str]) -> Row | None:
    """Returns the row of a line; None if it is not a complete row."""
    try:
        iteration, kind, *cells = line.decode("ascii").strip().split(",")
        values = [float(cell) if cell else math.nan for cell in cells]
        number = int(iteration)
    except ValueError:
        return None
    if not (line.endswith(b"\n") and kind in (TRAIN, HELD_OUT) and len(cells) == len(columns)):
        return None
    if not 0 <= number < 1 << 53:
        return None
    return number, kind, [math.copysign(math.inf, v) if abs(v) > MAX_VALUE else v for v in values]


def _table(cells: array[float], columns: Sequence[str]) -> Rows:
    """Returns rows from their numbers, row by row: the iteration, then the values of `columns`."""
    iterations, *values = np.array(cells).reshape(-1, 1 + len(columns)).T
    unknown = np.full(len(iterations), math.nan)
    by_name = dict.fromkeys(METRICS, unknown) | dict(zip(columns, values, strict=True))
    return Rows(iterations.astype(np.int64), by_name)
