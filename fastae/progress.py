"""What a run prints: a live bar on a terminal, one plain line a log step elsewhere (a file, CI)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# highlight and markup off: a file name may hold brackets, and numbers need no colours.
console = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """One line to the user, above the bar where one is shown."""
    console.print(text)


class TrainingProgress(AbstractContextManager):
    """The state of a training loop, for people. `update` costs nothing between log steps."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("train", total=iterations, status="first step ...")

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


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '7 h 05 min', '4 d 3 h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
