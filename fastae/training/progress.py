"""The state of a training loop: a live bar on a terminal, one plain line per log step elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn

from fastae.utils.console import console, duration, log

WIDE = 110
"""Columns of a terminal that show everything; on narrower ones, without the loss and the data wait."""


@dataclass(frozen=True)
class Status:
    """What a log step shows. data_wait: share of the time. remaining: seconds."""

    loss: float
    loss_index: float
    images_per_second: float
    data_wait: float
    remaining: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}  loss_index {self.loss_index:>9,.0f}  "
            f"{self.images_per_second:,.1f} images/s  data wait {self.data_wait:.1%}  "
            f"ETA {duration(self.remaining)}"
        )

    @property
    def short(self) -> str:
        return (
            f"loss_index {self.loss_index:,.0f}  {self.images_per_second:,.1f} images/s  "
            f"ETA {duration(self.remaining)}"
        )


class Display(Protocol):
    """Where a loop shows how far it is."""

    def begin(self, start: int, iterations: int) -> AbstractContextManager: ...

    def advance(self) -> None:
        """One iteration is done; costs nothing between log steps."""

    def report(self, iteration: int, status: Status) -> None:
        """A log step."""


class TrainingProgress:
    """One run's bar, or its lines."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.completed:,}/{task.total:,}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
            transient=True,  # the last lines say it all; after Ctrl-C it would be there twice
            expand=True,
        )

    def begin(self, start: int, iterations: int) -> AbstractContextManager:
        self._iterations = iterations
        self._task = self._bar.add_task("train", total=iterations, completed=start, status="first step ...")
        return self._bar

    def advance(self) -> None:
        self._bar.advance(self._task)

    def report(self, iteration: int, status: Status) -> None:
        self._bar.update(self._task, status=str(status) if console.width >= WIDE else status.short)
        if not console.is_terminal:
            log_line(iteration, self._iterations, status)


def log_line(iteration: int, iterations: int, status: Status, prefix: str = "") -> None:
    """A log step as a line, for a log file."""
    width = len(f"{iterations:,}")
    log(f"{prefix}{iteration:>{width},}/{iterations:,}  {status}")
