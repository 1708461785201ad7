"""Where the time of a training loop goes: waiting for data, or in the step.

On a CPU the host's clock is read at each mark. On CUDA each mark is an event in the stream, so that
what is timed is the device: the wait is the time in which the device had no batch to work on. Events
are read only when a window is closed, which is when the loop logs and waits for the device anyway.
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
    """A stretch of iterations. Times in seconds; `wait_share` is the part of `seconds` without data.

    step_p50, _p95, _p99: percentiles of an iteration's time, its wait for data included.
    """

    iterations: int
    seconds: float
    images_per_second: float
    wait_share: float
    step_p50: float
    step_p95: float
    step_p99: float


class StepClock:
    """Call `begin`, then for each iteration `data_ready` and `step_done`; `close` ends the window."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._batch_size = batch_size
        self._marks: list[Any] = []

    def begin(self) -> None:
        """Starts a new window here: what came between (an evaluation, a checkpoint) is not counted."""
        self._marks = [self._mark()]

    def data_ready(self) -> None:
        self._marks.append(self._mark())

    def step_done(self) -> None:
        self._marks.append(self._mark())

    def close(self) -> Window:
        """The figures since `begin`, which covers at least one iteration. Waits for the device."""
        if self._on_gpu:
            self._marks[-1].synchronize()
        spans = np.array([self._between(a, b) for a, b in itertools.pairwise(self._marks)])
        waits, steps = spans[0::2], spans[1::2]
        seconds = float(spans.sum())
        p50, p95, p99 = np.percentile(waits + steps, (50, 95, 99))
        return Window(
            iterations=len(steps),
            seconds=seconds,
            images_per_second=len(steps) * self._batch_size / seconds,
            wait_share=float(waits.sum()) / seconds,
            step_p50=float(p50),
            step_p95=float(p95),
            step_p99=float(p99),
        )

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1e3 if self._on_gpu else b - a
