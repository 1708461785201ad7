"""A run's scalars out of its TensorBoard event files, and TensorBoard's smoothing of them.

Pictures, of which a run of 100,000 iterations holds 100 MB, are passed over unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastae.events import DamagedFile, event_files, records

LARGEST = 32_768
"""Bytes. Records above this are pictures, and are passed over unread; a scalar's has about 70."""

SETTINGS = "config/text_summary"
"""What a run writes first, and again whenever it is resumed."""


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


def read_events(folder: Path) -> Events:
    """Every scalar in the event files of `folder`. Damage is told of in `problems`, never raised.

    Where an iteration was logged twice, the later record stands.
    """
    points: dict[str, dict[int, float]] = {}
    seconds, began, problems = 0.0, 0, []
    for path in event_files(folder):
        before = None
        try:
            for event, _ in records(path, LARGEST):
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


def _series(points: Mapping[int, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))
