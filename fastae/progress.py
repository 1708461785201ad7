"""The state of a training loop: a live bar on a terminal, one plain line a log step elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fastae.console import console, say


class TrainingProgress(AbstractContextManager):
    """The state of a training loop, for people. `update` costs nothing between log steps."""

    def __init__(self, start: int, iterations: int) -> None:
        self._iterations = iterations
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("train", total=iterations, completed=start, status="first step ...")

    def advance(self) -> None:
        self._bar.advance(self._task)

    def report(self, iteration: int, status: str) -> None:
        """The figures of a log step."""
        self._bar.update(self._task, completed=iteration, status=status)
        if not console.is_terminal:
            width = len(f"{self._iterations:,}")
            say(f"{iteration:>{width},}/{self._iterations:,}  {status}")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
