"""Measures where the time of a training loop goes: waiting for data, or in the step.

On a CPU each mark is a reading of the host's clock. On CUDA each mark is an event in the stream, so the
device is timed: the wait for data is the time in which the device had no batch to work on. Events are
read after the window is over, together with its other figures.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Window:
    """The speed of consecutive iterations."""

    iterations: int
    """The number of iterations."""

    seconds: float
    images_per_second: float

    data_wait: float
    """The share of `seconds` in which there was no batch, in [0, 1]."""

    step_p50: float
    """The median time of an iteration with its wait for data, in seconds."""

    step_p95: float
    """The 95th percentile of the same time, in seconds."""


class StepTimer:
    """Marks the moments of a loop: call `begin`, then `fetch`, `data_ready` and `step_done` per iteration.

    `split` ends a window. The time between an iteration's end and the next `fetch`, in which other runs take
    their turns and the host does its own work, belongs to the window, but not to the wait for data.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._batch_size = batch_size
        self._marks: list[Any] = []
        self._excluded: list[int] = []

    def begin(self) -> None:
        """Starts a new window. The time since the last one, for example of an evaluation, is not counted."""
        self._marks, self._excluded = [self._mark()], []

    def exclude(self) -> None:
        """Excludes the time from the last iteration to the next, in which a checkpoint is saved."""
        self._excluded.append(len(self._marks) // 3)

    def fetch(self) -> Any:
        """Marks this moment and returns the mark: on CUDA an event, else seconds."""
        self._marks.append(self._mark())
        return self._marks[-1]

    data_ready = step_done = fetch

    def split(self) -> Marks:
        """Ends the window, which has at least one iteration, and starts a new one. Returns its marks."""
        marks, self._marks = self._marks, self._marks[-1:]
        excluded, self._excluded = self._excluded, []
        return Marks(marks, excluded, on_gpu=self._on_gpu, batch_size=self._batch_size)

    def _mark(self) -> Any:
        """Marks this moment: on CUDA by an event in the stream, else by the host's clock in seconds."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # a waiting thread frees its core
        event.record()
        return event


@dataclass(frozen=True)
class Marks:
    """The moments of one window, which a GPU may not have reached yet."""

    marks: list[Any]
    """The start of the window, then three marks per iteration."""

    excluded: list[int]
    """The iterations, counted from 0, before which the time is not counted."""

    on_gpu: bool
    batch_size: int

    def measure(self) -> Window:
        """Computes the window's figures. Waits until the device has reached its end."""
        if self.on_gpu:
            self.marks[-1].synchronize()
        pairs = itertools.pairwise(self.marks)
        spans = np.array([a.elapsed_time(b) / 1e3 if self.on_gpu else b - a for a, b in pairs])
        spans[[3 * index for index in self.excluded]] = 0
        gaps, waits, steps = spans[0::3], spans[1::3], spans[2::3]
        seconds = float(spans.sum())
        p50, p95 = np.percentile(gaps + waits + steps, (50, 95))
        return Window(
            iterations=len(steps),
            seconds=seconds,
            images_per_second=len(steps) * self.batch_size / seconds,
            data_wait=float(waits.sum()) / seconds,
            step_p50=float(p50),
            step_p95=float(p95),
        )
