"""metrics.csv in a run's folder: a row per log step and a row per evaluation, appended as the run proceeds.

UTF-8, comma-separated, one header line. `kind` is "train" (the batch of that iteration) or "held_out" (the
held-out images after it); a cell is empty if its column does not apply. Within a kind the iterations ascend.
loss_index is the mean squared error x 1e7; data_wait is a share of the time, in [0, 1]; psnr is in dB;
ssim, in [-1, 1], is missing in files of older versions.
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

MAX_BYTES, MAX_LINE = 1 << 26, 1 << 10
"""Limits for a file that is read. 64 MiB are some 600,000 log steps."""

MAX_VALUE = 1e30
"""Larger numbers are read as infinite: no plot can show them."""


@dataclass(frozen=True)
class Rows:
    """Rows of one kind. iterations: int64 (n,), ascending. values: float64 (n,) by column; nan if empty."""

    iterations: np.ndarray
    values: Mapping[str, np.ndarray]

    def up_to(self, iteration: int) -> Rows:
        kept = self.iterations <= iteration
        return Rows(self.iterations[kept], {name: values[kept] for name, values in self.values.items()})


@dataclass(frozen=True)
class Metrics:
    """damaged: how many lines were skipped because they are not valid rows."""

    train: Rows
    held_out: Rows
    damaged: int

    def up_to(self, iteration: int) -> Metrics:
        """The rows that a run which continues from this iteration keeps."""
        return Metrics(self.train.up_to(iteration), self.held_out.up_to(iteration), self.damaged)

    def windows(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and seconds between log steps, both (n,), from the speed that was logged.

        Steps and the wait for data: without start, evaluations and saving.
        """
        rates = self.train.values["images_per_second"]
        images = np.diff(self.train.iterations, prepend=0) * float(batch_size)
        known = np.isfinite(rates) & (rates > 1e-9) & (images > 0)
        return images[known], images[known] / rates[known]


@dataclass(frozen=True)
class Content:
    """What metrics.csv held when a checkpoint was written: how many bytes, and their SHA-256."""

    size: int
    sha256: str


class MetricsWriter(AbstractContextManager):
    """Appends rows to the file at `path`, which keeps those up to iteration `start`; with 0, none.

    content: what the file held at `start`. Whatever follows it is dropped; if it has changed, `is_damaged` is
    true, and the valid rows up to `start` are kept.
    Raises OSError if the disk is full or `path` is not a file; the file is then as it was before.
    """

    def __init__(self, path: Path, start: int = 0, content: Content | None = None) -> None:
        old = _read(path) if start else b""
        self._columns = _columns(old.partition(b"\n")[0] + b"\n") or METRICS
        kept = old[: content.size] if content else b""
        self.is_damaged = content is not None and hashlib.sha256(kept).hexdigest() != content.sha256
        if content is None or self.is_damaged:
            kept = _header(self._columns) + _valid_rows(old, start, self._columns)
        with atomic_write(path) as new:
            new.write(kept)
        self._size, self._digest = len(kept), hashlib.sha256(kept)
        self._file = open_own(path, "a")

    def append(self, iteration: int, kind: str, **metrics: float) -> None:
        """Adds a row, which others can read when this returns; `metrics` are some of METRICS."""
        # Nine digits keep a float32 exactly.
        cells = (f"{metrics[name]:.9g}" if name in metrics else "" for name in self._columns)
        line = ",".join((str(iteration), kind, *cells)).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        self._digest.update(line)

    def sync(self) -> Content:
        """What the file holds; returns when it is on the disk."""
        os.fsync(self._file.fileno())
        return Content(self._size, self._digest.hexdigest())

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a row that could not be written has been reported
            self._file.close()


def read_metrics(path: Path) -> Metrics:
    """Reads a file from any source; lines that are not valid rows, or repeat an iteration, are skipped.

    Raises OSError if it cannot be read, and ValueError if it is not a metrics.csv or too large.
    """
    require_file(path)
    last = {TRAIN: -1, HELD_OUT: -1}
    cells = {TRAIN: array("d"), HELD_OUT: array("d")}
    damaged = 0
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        if not (columns := _columns(file.readline(MAX_LINE))):
            raise ValueError("its header is not that of metrics.csv")
        for line in _lines(file):
            row = _parse(line, columns)
            if row and row[0] > last[row[1]]:
                iteration, kind, values = row
                last[kind] = iteration
                cells[kind].extend((iteration, *values))
            else:
                damaged += line.endswith(b"\n")  # otherwise it is being written
    return Metrics(_rows(cells[TRAIN], columns), _rows(cells[HELD_OUT], columns), damaged)


def _read(path: Path) -> bytes:
    """The file, up to MAX_BYTES; nothing if there is none. Raises OSError if something else is there."""
    if not path.exists():
        return b""
    require_file(path)
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def _header(columns: Sequence[str]) -> bytes:
    return ",".join(("iteration", "kind", *columns)).encode() + b"\n"


def _columns(header: bytes) -> tuple[str, ...] | None:
    """The metrics that a file with this first line has; None if it is not the first line of a metrics.csv."""
    for columns in (METRICS, tuple(name for name in METRICS if name != "ssim")):
        if header == _header(columns):
            return columns
    return None


def _valid_rows(content: bytes, last: int, columns: Sequence[str]) -> bytes:
    """The rows up to iteration `last`; of each kind the iterations ascend."""
    seen, kept = {TRAIN: -1, HELD_OUT: -1}, []
    for line in _lines(io.BytesIO(content)):
        row = _parse(line, columns)
        if row and seen[row[1]] < row[0] <= last:
            seen[row[1]] = row[0]
            kept.append(line)
    return b"".join(kept)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; a line that is too long comes in pieces."""
    return iter(lambda: file.readline(MAX_LINE), b"")


def _parse(line: bytes, columns: Sequence[str]) -> tuple[int, str, list[float]] | None:
    """(iteration, kind, values in the order of the columns), or None if this is not a complete row."""
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


def _rows(cells: array[float], columns: Sequence[str]) -> Rows:
    iterations, *values = np.array(cells).reshape(-1, 1 + len(columns)).T
    unknown = np.full(len(iterations), math.nan)
    by_name = dict.fromkeys(METRICS, unknown) | dict(zip(columns, values, strict=True))
    return Rows(iterations.astype(np.int64), by_name)
