"""Lets the training loop run a few steps ahead of a GPU, without waiting for the figures that it logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastae.experiment.metrics import loss_index
from fastae.training.step_timer import Marks, Window

AHEAD = 4
"""The most steps that are queued on the GPU. A few bridge any pause of the host. More would only take memory,
since each holds its batch."""


class StepQueue:
    """The steps that are queued on a GPU. The host waits while there are more than AHEAD.

    On a CPU a step is over when its call returns, so nothing is queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._ends: deque[Any] = deque()
        self._waited = 0.0

    def add(self, end: Any) -> None:
        """Adds a step that was submitted. On CUDA, `end` is the event after the step."""
        if self._on_gpu:
            self._ends.append(end)
            if len(self._ends) > AHEAD and not (oldest := self._ends.popleft()).query():
                self._waited += _wait_for(oldest)

    def take_wait(self) -> float:
        """Returns the seconds for which the host has waited for the device since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


@dataclass(frozen=True)
class TrainMetrics:
    """The figures of a log step, which ends a window of iterations."""

    iteration: int
    """The last iteration of the window."""

    losses: list[float]
    """The mean loss element of each iteration of the window, on this rank."""

    loss: float
    """The mean loss element of the last iteration, over all ranks."""

    loss_index: float
    """The mean squared error of the last iteration, over all ranks, times 1e7."""

    gradient_norm: float
    """The 2-norm of the last iteration's gradients, averaged over all ranks."""

    window: Window
    """The speed of the window."""

    device_seconds: float
    """The seconds for which the host waited for the device."""


class PendingWindows:
    """Collects the losses of a window of iterations. A closed window is copied to the host, and read later.

    On a GPU the copy is queued in the stream behind the steps. By the next log step the copy is
    complete, so the host reads it without waiting.
    """

    def __init__(self, device: torch.device, longest: int, start: int) -> None:
        """The windows have at most `longest` iterations; the first one begins after iteration `start`."""
        self.first = start + 1
        """The first iteration of the open window."""
        # The losses of a window are in one tensor, since each reading of a tensor is a copy to the host.
        self._losses = torch.zeros(longest, device=device)
        self._count = 0
        self._unread: deque[Callable[[], TrainMetrics]] = deque()

    def add(self, loss: Tensor) -> None:
        """Adds the loss of an iteration to the open window: a scalar, which may be overwritten afterwards."""
        self._losses[self._count].copy_(loss)
        self._count += 1

    def open_losses(self) -> list[float]:
        """Returns the losses of the open window. Waits for the device."""
        return self._losses[: self._count].tolist()

    def close(self, last: Tensor, marks: Marks, waited: float) -> None:
        """Starts to copy the open window to the host, and opens the next one.

        Args:
            last: loss, squared error and gradient norm of the window's last iteration, (3,).
            marks: the time marks of the window.
            waited: the seconds for which the host has waited for the device.
        """
        values = torch.cat([last, self._losses[: self._count]]).to("cpu", non_blocking=True)
        ready = torch.cuda.Event() if self._losses.is_cuda else None
        if ready:
            ready.record()

        self.first, self._count = self.first + self._count, 0
        self._unread.append(partial(_measure, self.first - 1, values, ready, marks, waited))

    def read(self, keep_last: int = 0) -> Iterator[TrainMetrics]:
        """Yields the closed windows that were not read yet, in order, without the last `keep_last`."""
        while len(self._unread) > keep_last:
            yield self._unread.popleft()()


def _measure(
    iteration: int, values: Tensor, ready: torch.cuda.Event | None, marks: Marks, waited: float
) -> TrainMetrics:
    """Computes the figures of a closed window, after waiting until its values are on the host."""
    seconds = waited + (_wait_for(ready) if ready else 0.0)
    loss, error, norm, *losses = values.tolist()
    return TrainMetrics(
        iteration=iteration,
        losses=losses,
        loss=loss,
        loss_index=loss_index(error),
        gradient_norm=norm,
        window=marks.measure(),
        device_seconds=seconds,
    )


def _wait_for(event: torch.cuda.Event) -> float:
    """Waits until the device has reached this event; returns the seconds of the wait."""
    before = time.perf_counter()
    event.synchronize()
    return time.perf_counter() - before
