"""The clock of the training loop: it times the steps, keeps their losses, and bounds the device's queue.

On a GPU the host stays a few steps ahead, and never waits until the device is idle: what a window measures is
copied in the stream, and read when a later window ends.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastae.experiment.metrics import loss_index
from fastae.monitor.loop_timer import LoopTimer, Marks, Timing

AHEAD = 4
"""The most steps that are queued on the GPU. A few bridge any pause of the host. More would only take memory,
since each holds its batch."""


@dataclass(frozen=True, kw_only=True)
class Window(Timing):
    """The figures of consecutive iterations. The last one is logged."""

    iteration: int
    """The last iteration of the window."""

    losses: Sequence[float]
    """The mean loss element of each iteration, over all ranks."""

    loss: float
    """The mean loss element of the last iteration, over all ranks."""

    loss_index: float
    """The mean squared error of the last iteration, over all ranks, times 1e7."""

    gradient_norm: float
    """The 2-norm of the last iteration's gradients, averaged over all ranks."""

    remaining: float = math.nan
    """The seconds until the run ends, at this speed."""

    @property
    def values(self) -> Mapping[str, float]:
        """The window's row in metrics.csv: column -> value."""
        return {
            "loss": self.loss,
            "loss_index": self.loss_index,
            "images_per_second": self.images_per_second,
            "data_wait": self.data_wait_share,
            "step_p50_ms": 1e3 * self.step_p50,
            "step_p95_ms": 1e3 * self.step_p95,
            "grad_norm": self.gradient_norm,
        }


@dataclass(frozen=True)
class _Closed:
    """A window whose end the device may not have reached yet."""

    iteration: int
    values: Tensor
    """Loss, squared error, gradient norm, then each iteration's loss: on the host once `end` is over."""

    marks: Marks
    waited: float
    end: torch.cuda.Event | None


class Clock(LoopTimer):
    """Times a loop: `fetch`, `data_ready` and `step_done` in each iteration, and `close` at a log step.

    The time from an iteration's end to the next `fetch`, in which the host does its own work, belongs to the
    window, but not to the wait for data. `skip` keeps the losses.

    Args:
        device: the device that trains.
        batch_size: the images of an iteration, on all ranks.
        longest: the most iterations of a window.
        start: the iteration that the run continues from; 0 for a new run.
        spent: the seconds of training in earlier sessions.
    """

    def __init__(
        self, device: torch.device, batch_size: int, *, longest: int, start: int = 0, spent: float = 0.0
    ) -> None:
        super().__init__(device)
        self.first = start + 1
        """The first iteration of the open window."""
        self._batch_size = batch_size
        # The losses of a window are in one tensor, since each reading of a tensor is a copy to the host.
        self._losses = torch.zeros(longest, device=device)
        self._count = 0
        self._queued: deque[torch.cuda.Event] = deque()
        self._waited = 0.0
        self._closed: deque[_Closed] = deque()
        self._spent, self._began = spent, time.monotonic()

    def skip(self) -> None:
        super().skip()
        self._waited = 0.0

    def begin(self) -> None:
        """Begins this session's training."""
        self._began = time.monotonic()
        self.skip()

    def elapsed(self) -> float:
        """Returns the seconds since training began, in all sessions, with evaluations and saving."""
        return self._spent + time.monotonic() - self._began

    def step_done(self, loss: Tensor) -> None:
        """Marks the end of a step with this loss: a scalar, which may be overwritten afterwards.

        Waits while more than AHEAD steps are queued on the device. On a CPU a step is over when its call
        returns.
        """
        end = self.end_step()
        self._losses[self._count].copy_(loss)
        self._count += 1
        if self._on_gpu:
            self._queued.append(end)
            if len(self._queued) > AHEAD and not (oldest := self._queued.popleft()).query():
                self._waited += _wait_for(oldest)

    def drain(self) -> None:
        """Waits until the device has done all steps, and counts the wait."""
        while self._queued:
            self._waited += _wait_for(self._queued.popleft())

    def open_losses(self) -> list[float]:
        """Returns this rank's losses in the open window. Waits for the device."""
        return self._losses[: self._count].tolist()

    def close(self, last: Tensor, mean: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        """Ends the window, and starts to copy its figures to the host.

        Args:
            last: loss, squared error and gradient norm of the last iteration, float32 (3,).
            mean: averages a tensor over the ranks.
        """
        values = mean(torch.cat([last, self._losses[: self._count]])).to("cpu", non_blocking=True)
        end = torch.cuda.Event() if self._on_gpu else None
        if end:
            end.record()
        iteration = self.first + self._count - 1
        self._closed.append(_Closed(iteration, values, self.cut(), waited=self._waited, end=end))
        self.first, self._count, self._waited = iteration + 1, 0, 0.0

    def read(self, keep_last: int = 0) -> Iterator[Window]:
        """Yields the closed windows that were not read yet, in order, without the last `keep_last`."""
        while len(self._closed) > keep_last:
            yield self._measure(self._closed.popleft())

    def _measure(self, closed: _Closed) -> Window:
        """Computes a window's figures, after waiting until the device has reached its end."""
        waited = closed.waited + _wait_for(closed.end) if closed.end else None
        timing = closed.marks.measure(len(closed.marks.ends) * self._batch_size)
        share = None if waited is None else waited / timing.seconds
        loss, error, norm, *losses = closed.values.tolist()
        return Window(
            **vars(replace(timing, device_wait_share=share)),
            iteration=closed.iteration,
            losses=losses,
            loss=loss,
            loss_index=loss_index(error),
            gradient_norm=norm,
        )


def _wait_for(event: torch.cuda.Event) -> float:
    """Waits until the device has reached this event; returns the seconds of the wait."""
    before = time.perf_counter()
    event.synchronize()
    return time.perf_counter() - before
