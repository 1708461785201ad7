"""Where the time of a training loop goes: waiting for data, or in the step.

On a CPU the host's clock is read at each mark. On CUDA each mark is an event in the stream, so that
what is timed is the device: the wait is the time in which the device had no batch to work on. Events
are read when the window's figures are, after it is over.
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
    """A stretch of iterations. Times in seconds; `data_wait` is the share of `seconds` without a batch.

    step_p50, step_p95: percentiles of an iteration's time, its wait for data included.
    """

    iterations: int
    seconds: float
    images_per_second: float
    data_wait: float
    step_p50: float
    step_p95: float


class StepTimer:
    """Call `begin`, then for each iteration `fetch`, `data_ready` and `step_done`; `split` ends the window.

    The time between an iteration's end and the next `fetch` (the turns of other runs, the host's own work)
    counts as time, but not as waiting for data.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._batch_size = batch_size
        self._marks: list[Any] = []
        self._excluded: list[int] = []

    def begin(self) -> None:
        """Starts a new window here: what came between, such as an evaluation, is not counted."""
        self._marks, self._excluded = [self._mark()], []

    def exclude(self) -> None:
        """What happens between the last iteration and the next, a checkpoint, is not counted either."""
        self._excluded.append(len(self._marks) // 3)

    def fetch(self) -> Any:
        """Returns the moment: on CUDA an event."""
        self._marks.append(self._mark())
        return self._marks[-1]

    data_ready = step_done = fetch

    def split(self) -> Marks:
        """The marks since `begin` or the last split, at least one iteration; the next window begins here."""
        marks, self._marks = self._marks, self._marks[-1:]
        excluded, self._excluded = self._excluded, []
        return Marks(marks, excluded, self._on_gpu, self._batch_size)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # whoever waits for it leaves the core
        event.record()
        return event


@dataclass(frozen=True)
class Marks:
    """The moments of one window, which a GPU may not have reached yet. excluded: iterations before which the
    time is not counted."""

    marks: list[Any]
    excluded: list[int]
    on_gpu: bool
    batch_size: int

    def measure(self) -> Window:
        """The window's figures. Waits for the device to reach its end."""
        if self.on_gpu:
            self.marks[-1].synchronize()
        pairs = itertools.pairwise(self.marks)
        spans = np.array([a.elapsed_time(b) / 1e3 if self.on_gpu else b - a for a, b in pairs])
        spans[[3 * place for place in self.excluded]] = 0
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
