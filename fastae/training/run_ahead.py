"""How the training loop runs ahead of a GPU: by a few steps, and without waiting for the figures it logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastae.losses import loss_index
from fastae.training.step_timer import Marks, Window

AHEAD = 4
"""Steps that a GPU may have before it: a few bridge any pause of the host, more would hold their batches."""


class StepQueue:
    """The steps that a GPU has before it: the host waits while they are more than AHEAD.

    On a CPU a step is over when its call returns, so nothing is queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._ends: deque[Any] = deque()
        self._waited = 0.0

    def add(self, end: Any) -> None:
        """Adds a step that was submitted. end: on CUDA the event that the device reaches after it."""
        if self._on_gpu:
            self._ends.append(end)
            if len(self._ends) > AHEAD and not (oldest := self._ends.popleft()).query():
                self._waited += _wait_for(oldest)

    def take_wait(self) -> float:
        """Seconds that the host has waited for the device since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


@dataclass(frozen=True)
class TrainMetrics:
    """A log step: what the window of iterations that it ends has measured."""

    iteration: int
    """The last of the window."""

    losses: list[float]
    """The mean loss element of each iteration of the window, on this rank."""

    loss: float
    """The mean loss element of the last iteration, over all ranks."""

    loss_index: float
    """The mean squared error of the last iteration, over all ranks, times 1e7."""

    gradient_norm: float
    """The 2-norm of the last iteration's gradients, averaged over all ranks."""

    window: Window
    device_seconds: float
    """Seconds that the host waited for the device."""


class PendingWindows:
    """Collects the losses of a window of iterations; a closed window is copied at once, and read later.

    On a GPU the copy is queued in the stream behind the steps. At the next log step the device has long made
    it, so that reading it then makes the host wait for nothing.
    """

    def __init__(self, device: torch.device, longest: int, start: int) -> None:
        """longest: the most iterations of a window. start: the iteration before the first window."""
        self.first = start + 1
        """The first iteration of the window that is open."""
        # Read together: each reading is a copy to the host.
        self._losses = torch.zeros(longest, device=device)
        self._count = 0
        self._unread: deque[Callable[[], TrainMetrics]] = deque()

    def add(self, loss: Tensor) -> None:
        """Adds an iteration to the open window. loss: a scalar, which may be overwritten afterwards."""
        self._losses[self._count].copy_(loss)
        self._count += 1

    def open_losses(self) -> list[float]:
        """The losses of the open window. Waits for the device."""
        return self._losses[: self._count].tolist()

    def close(self, last: Tensor, marks: Marks, waited: float) -> None:
        """Starts to copy the open window to the host, and opens the next.

        last: (3,), loss, squared error and gradient norm of its last iteration. waited: seconds that the host
        has waited for the device.
        """
        values = torch.cat([last, self._losses[: self._count]]).to("cpu", non_blocking=True)
        ready = torch.cuda.Event() if self._losses.is_cuda else None
        if ready:
            ready.record()

        self.first, self._count = self.first + self._count, 0
        self._unread.append(partial(_measure, self.first - 1, values, ready, marks, waited))

    def read(self, but: int = 0) -> Iterator[TrainMetrics]:
        """The closed windows that were not read yet, in order, without the last `but`."""
        while len(self._unread) > but:
            yield self._unread.popleft()()


def _measure(
    iteration: int, values: Tensor, ready: torch.cuda.Event | None, marks: Marks, waited: float
) -> TrainMetrics:
    seconds = waited + (_wait_for(ready) if ready else 0.0)
    loss, error, norm, *losses = values.tolist()
    return TrainMetrics(iteration, losses, loss, loss_index(error), norm, marks.measure(), seconds)


def _wait_for(event: torch.cuda.Event) -> float:
    """Waits for the device to reach this event; returns for how many seconds."""
    before = time.perf_counter()
    event.synchronize()
    return time.perf_counter() - before
