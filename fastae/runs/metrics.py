"""metrics.csv in a run's folder: a row per log step and a row per evaluation, appended as the run proceeds.

UTF-8, comma-separated, one header line. `kind` is "train" (the batch of that iteration) or "held_out" (the
held-out images after it); a cell is empty if its column does not apply. Within a kind the iterations ascend.
loss_index is the mean squared error x 1e7; data_wait is a share of the time, in [0, 1]; psnr is in dB.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastae.utils.files import atomic_write, require_file

NAME = "metrics.csv"
TRAIN, HELD_OUT = "train", "held_out"
METRICS = (
    "loss", "loss_index", "images_per_second", "data_wait", "step_p50_ms", "step_p95_ms", "psnr", "grad_norm",
)  # fmt: skip
HEADER = ",".join(("iteration", "kind", *METRICS)).encode() + b"\n"

MAX_BYTES, MAX_ROWS, MAX_LINE = 1 << 27, 1_000_000, 1 << 10
"""Of a file that is read: a run of a million log steps has some 100 MB."""

MAX_VALUE = 1e30
"""A larger number is infinite to whoever draws it."""


@dataclass(frozen=True)
class Rows:
    """Of one kind. iterations: int64 (n,), ascending. values: by column, float64 (n,), nan where empty."""

    iterations: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Metrics:
    """damaged: how many lines were skipped because they are no rows; the last may be incomplete."""

    train: Rows
    held_out: Rows
    damaged: int = 0


class MetricsWriter:
    """Appends to the file at `path`, made with its header if there is none; a context manager.

    All of it raises OSError if the disk is full, or `path` is no file; a run that resumes calls
    `truncate_after` first.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self._path = path
        self._file = path.open("ab")
        if not self._file.tell():
            self._file.write(HEADER)

    def append(self, iteration: int, kind: str, **metrics: float | None) -> None:
        """A row; `metrics` are some of METRICS."""
        if kind not in (TRAIN, HELD_OUT) or not set(metrics) <= set(METRICS):
            raise ValueError(f"no such row: {kind}, {', '.join(metrics)}")
        values = (metrics.get(name) for name in METRICS)
        cells = ("" if value is None else f"{value:.9g}" for value in values)  # 9 digits: float32 exactly
        self._file.write(",".join((str(iteration), kind, *cells)).encode() + b"\n")

    def flush(self) -> None:
        """Returns when other processes can read all rows."""
        self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def truncate_after(self, iteration: int) -> None:
        """Removes later iterations, and what is no row; the file is replaced whole or not at all."""
        self._file.flush()
        with self._path.open("rb") as old, atomic_write(self._path) as new:
            new.write(HEADER)
            new.writelines(line for line in _lines(old) if (row := _parse(line)) and row[0] <= iteration)
        self._file.close()
        self._file = self._path.open("ab")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # else what came first is reported
                raise


def read_metrics(path: Path) -> Metrics:
    """A file that anybody may have written. Lines that are no rows, or repeat an iteration, are skipped.

    Raises OSError if it cannot be read, and ValueError if it is no metrics.csv or too large.
    """
    require_file(path)
    columns = {kind: (array("q"), [array("d") for _ in METRICS]) for kind in (TRAIN, HELD_OUT)}
    damaged = rows = 0
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        if file.readline(MAX_LINE) != HEADER:
            raise ValueError("its header is not that of metrics.csv")
        for line in _lines(file):
            row = _parse(line)
            if row is None or (columns[row[1]][0] and columns[row[1]][0][-1] >= row[0]):
                damaged += line.endswith(b"\n")  # else it is being written
                continue
            if (rows := rows + 1) > MAX_ROWS:
                raise ValueError(f"it has more than {MAX_ROWS:,} rows")
            iterations, values = columns[row[1]]
            iterations.append(row[0])
            for column, value in zip(values, row[2], strict=True):
                column.append(value)
    return Metrics(_rows(*columns[TRAIN]), _rows(*columns[HELD_OUT]), damaged)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines, those that are too long in pieces."""
    return iter(lambda: file.readline(MAX_LINE), b"")


def _parse(line: bytes) -> tuple[int, str, list[float]] | None:
    """Iteration, kind and the values of METRICS; None if it is no complete row."""
    try:
        iteration, kind, *cells = line.decode("ascii").strip().split(",")
        if not line.endswith(b"\n") or kind not in (TRAIN, HELD_OUT) or len(cells) != len(METRICS):
            return None
        values = [float(cell) if cell else math.nan for cell in cells]
        number = int(iteration)
    except ValueError:
        return None
    if not 0 <= number < 1 << 53:
        return None
    return number, kind, [math.copysign(math.inf, v) if abs(v) > MAX_VALUE else v for v in values]


def _rows(iterations: array[int], values: list[array[float]]) -> Rows:
    arrays = (np.array(column, np.float64) for column in values)
    return Rows(np.array(iterations, np.int64), dict(zip(METRICS, arrays, strict=True)))
