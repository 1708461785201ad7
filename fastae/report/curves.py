"""A run's scalars out of its TensorBoard event files, and TensorBoard's smoothing of them.

The records are framed as TensorBoard frames them, checked by its checksum and parsed by its protocol buffer.
Its own loader is not used, because it reads the pictures too: without TensorFlow it computes their checksums
in Python, at some 3 MB/s, and a run of 100,000 iterations holds 100 MB of them. And it is silent about a file
that is cut short or damaged.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from fastae.events import event_files

LARGEST = 32_768
"""Bytes. Records above this are pictures, and are passed over unread; a scalar's has about 70."""

SETTINGS = "config/text_summary"
"""What a run writes first, and again whenever it is resumed."""

HEADER = struct.Struct("<QI")  # length of the data, checksum of these 8 bytes; after the data, 4 bytes more
CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class Series:
    """Values against iterations, which ascend: int64 and float64, both (n,). A value may be nan or inf."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> Series:
        """Without the points that are no number."""
        known = np.isfinite(self.values)
        return Series(self.steps[known], self.values[known])

    def at(self, step: int) -> float:
        """The value at this iteration; nan where there is none."""
        (found,) = np.nonzero(self.steps == step)
        return float(self.values[found[0]]) if len(found) else float("nan")


EMPTY = Series(np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class Events:
    """scalars: by tag. seconds: from first to last event of each session, added up, so that the pause before
    a run was resumed does not count. began: the iteration at which the last session began. problems: a line
    for each file that could not be read to its end."""

    scalars: Mapping[str, Series]
    seconds: float
    began: int
    problems: tuple[str, ...]

    def series(self, tag: str) -> Series:
        return self.scalars.get(tag, EMPTY)


class DamagedFile(Exception):
    """Why a file's records end before the file does."""


def read_events(folder: Path) -> Events:
    """Every scalar in the event files of `folder`. Damage is told of in `problems`, never raised.

    Where an iteration was logged twice, the later record stands.
    """
    points: dict[str, dict[int, float]] = {}
    seconds, began, problems = 0.0, 0, []
    for path in event_files(folder):
        before = None
        try:
            for event in _events(path):
                if any(value.tag == SETTINGS for value in event.summary.value):
                    before, began = None, event.step
                seconds += max(0.0, event.wall_time - before) if before is not None else 0.0
                before = event.wall_time
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        points.setdefault(value.tag, {})[event.step] = value.simple_value
        except DamagedFile as damage:
            problems.append(f"{path}: {damage}; what stands before that is used")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}")
    return Events({tag: _series(found) for tag, found in points.items()}, seconds, began, tuple(problems))


def smooth(values: np.ndarray, weight: float = 0.95) -> np.ndarray:
    """TensorBoard's smoothing: an exponential moving average, divided by the weight that it has gathered.

    As its scalar chart does: s = weight * s + (1 - weight) * value from s = 0, shown as
    s / (1 - weight^n) for the n-th value; values that are no number are shown as they are and not averaged;
    a constant series is left alone.
    """
    constant = len(values) > 0 and bool((values == values[0]).all())
    smoothed = np.array(values, dtype=np.float64)
    average, count = 0.0, 0
    for place, value in enumerate(smoothed):
        if constant or not np.isfinite(value):
            continue
        average = weight * average + (1 - weight) * value
        count += 1
        smoothed[place] = average / (1 - weight**count)
    return smoothed


def _events(path: Path) -> Iterator[Event]:
    for offset, record in _records(path):
        try:
            yield Event.FromString(record)
        except DecodeError:
            raise DamagedFile(f"damaged at byte {offset:,}") from None


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The small records, each with its place. Raises DamagedFile at the first that is not whole."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (offset := file.tell()) < size:
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise DamagedFile(f"cut short at byte {offset:,}")
            length, checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise DamagedFile(f"damaged at byte {offset:,}")
            if file.tell() + length + CHECKSUM.size > size:
                raise DamagedFile(f"cut short at byte {offset:,}")
            if length > LARGEST:
                file.seek(length + CHECKSUM.size, os.SEEK_CUR)
                continue
            data = file.read(length)
            if masked_crc32c(data) != CHECKSUM.unpack(file.read(CHECKSUM.size))[0]:
                raise DamagedFile(f"damaged at byte {offset:,}")
            yield offset, data


def _series(points: Mapping[int, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))
