"""Times a training loop: how long its steps take, and how long they wait for data.

On a CPU each mark is a reading of the host's clock. On CUDA each mark is an event in the device's current
stream, so the device is timed: the wait for data is the time in which the device had no batch to work on.
Nothing here waits for the device: a window can be measured once the device has reached its end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

WORK, WAIT, QUEUED, EXCLUDED = range(4)
"""What a loop did before a mark: it worked, it waited for a batch (QUEUED: and then the device was still at
work on earlier steps), or something that is not counted."""


WARM_UP = 10
"""The number of iterations after which the speed is representative: cuDNN has chosen, caches are warm."""


@dataclass(frozen=True)
class Timing:
    """The figures of consecutive steps."""

    images: int
    """The number of images; 0 if it is unknown."""

    seconds: float

    data_wait: float
    """The seconds in which there was no batch."""

    step_p50: float
    """The median time of a step with its wait for data, in seconds."""

    step_p95: float
    """The 95th percentile of the same time, in seconds."""

    ended: float
    """The host's time at the end, by time.monotonic."""

    device_wait_share: float | None = None
    """The share of the time in which the host waited for the device, in [0, 1]; None if it is unknown."""

    queued_share: float | None = None
    """The share of the batches, in [0, 1], that found the device still at work; None on a CPU."""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def data_wait_share(self) -> float:
        """The share of the time in which there was no batch, in [0, 1]."""
        return self.data_wait / self.seconds


@dataclass(frozen=True)
class Marks:
    """The marks of consecutive steps, whose end the device may not have reached yet."""

    marks: Sequence[Any]
    kinds: Sequence[int]
    """What the loop did before each mark but the first."""

    ends: Sequence[int]
    """For each step, the index of the mark at its end."""

    on_gpu: bool
    ended: float

    def are_reached(self, wait: bool = False) -> bool:
        """Returns whether the device has reached the end. With `wait`, waits for it."""
        if wait and self.on_gpu:
            self.marks[-1].synchronize()
        return not self.on_gpu or self.marks[-1].query()

    def measure(self, images: int) -> Timing:
        """Computes the figures of steps that the device has done. `images` is the number of their images."""
        pairs = pairwise(self.marks)
        spans = np.array([a.elapsed_time(b) / 1e3 if self.on_gpu else b - a for a, b in pairs])
        kinds = np.array(self.kinds)
        spans[kinds == EXCLUDED] = 0
        p50, p95 = np.percentile(np.add.reduceat(spans, [0, *self.ends[:-1]]), (50, 95))
        return Timing(
            images=images,
            seconds=float(spans.sum()),
            data_wait=float(spans[(kinds == WAIT) | (kinds == QUEUED)].sum()),
            step_p50=float(p50),
            step_p95=float(p95),
            ended=self.ended,
            queued_share=float((kinds == QUEUED).sum() / len(self.ends)) if self.on_gpu else None,
        )


class LoopTimer:
    """Times a loop: in each iteration `data_ready` and `end_step`; `cut` ends a window of iterations.

    Args:
        device: the device that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self.skip()

    def skip(self) -> None:
        """Begins the window here: leaves out its steps so far, and the time since the last window."""
        self._marks: list[Any] = [self._mark()]
        self._kinds: list[int] = []
        self._ends: list[int] = []

    def fetch(self) -> None:
        """Marks the end of work other than a step. It need not be called right after a step."""
        self._add(WORK)

    def data_ready(self) -> None:
        """Marks the moment at which the batch is there."""
        is_queued = self._on_gpu and not self._marks[-1].query()
        self._add(QUEUED if is_queued else WAIT)

    def end_step(self) -> Any:
        """Marks the end of a step; returns the mark."""
        self._add(WORK)
        self._ends.append(len(self._kinds))
        return self._marks[-1]

    def exclude(self) -> None:
        """Leaves out the time since the last mark, for example of saving a checkpoint."""
        self._add(EXCLUDED)

    def cut(self) -> Marks:
        """Ends the window after its last step, and returns its marks."""
        last = self._ends[-1] if self._ends else 0
        marks, kinds = self._marks[: last + 1], self._kinds[:last]
        found = Marks(marks, kinds, self._ends, self._on_gpu, time.monotonic())
        self._marks, self._kinds, self._ends = self._marks[last:], self._kinds[last:], []
        return found

    def _add(self, kind: int) -> None:
        self._marks.append(self._mark())
        self._kinds.append(kind)

    def _mark(self) -> Any:
        """Marks this moment: on CUDA by an event in the stream, else by the host's clock in seconds."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # a waiting thread frees its core
        event.record(torch.cuda.current_stream(self._device))
        return event
