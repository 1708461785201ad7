"""The state of a training loop: a live bar on a terminal, one plain line a log step elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fastae.utils.console import console, duration, say


@dataclass(frozen=True)
class Figures:
    """What a log step shows. wait_share: of the time, without data. remaining: seconds."""

    loss: float
    loss_index: float
    images_per_second: float
    wait_share: float
    remaining: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}  loss_index {self.loss_index:>9,.0f}  "
            f"{self.images_per_second:,.1f} images/s  data wait {self.wait_share:.1%}  "
            f"ETA {duration(self.remaining)}"
        )


class Display(Protocol):
    """Where a loop shows how far it is."""

    def begin(self, start: int, iterations: int) -> AbstractContextManager: ...

    def advance(self) -> None:
        """One iteration is done; costs nothing between log steps."""

    def report(self, iteration: int, figures: Figures) -> None:
        """The figures of a log step."""


class TrainingProgress:
    """One run's bar, or its lines."""

    def __init__(self) -> None:
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )

    def begin(self, start: int, iterations: int) -> AbstractContextManager:
        self._iterations = iterations
        self._task = self._bar.add_task("train", total=iterations, completed=start, status="first step ...")
        return self._bar

    def advance(self) -> None:
        self._bar.advance(self._task)

    def report(self, iteration: int, figures: Figures) -> None:
        self._bar.update(self._task, completed=iteration, status=str(figures))
        if not console.is_terminal:
            show_line(iteration, self._iterations, figures)


def show_line(iteration: int, iterations: int, figures: Figures) -> None:
    """A log step as a line, where there is no terminal."""
    width = len(f"{iterations:,}")
    say(f"{iteration:>{width},}/{iterations:,}  {figures}")
