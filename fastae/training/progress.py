"""Shows how far a run is: a live bar on a terminal, one plain line per log step elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from rich.progress import BarColumn, Progress, TextColumn

from fastae.training.run_ahead import TrainMetrics
from fastae.utils.console import console, duration, log

WIDE = 110
"""The width in columns from which the bar shows everything. In a narrower terminal it hides the loss and the
wait for data."""


def line_of(metrics: TrainMetrics, remaining: float, wide: bool = True) -> str:
    """Returns the line that shows a log step, `remaining` seconds before the run ends."""
    window = metrics.window
    rate, ending = f"{window.images_per_second:,.1f} images/s", f"ETA {duration(remaining)}"
    if wide:
        return (
            f"loss {metrics.loss:.4f}  loss_index {metrics.loss_index:>9,.0f}  {rate}  "
            f"data wait {window.data_wait:.1%}  {ending}"
        )
    return f"loss_index {metrics.loss_index:,.0f}  {rate}  {ending}"


class LogLines:
    """Shows each log step as a line, if the output is not a terminal."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._total = ""

    def begin(self, iterations: int | None) -> AbstractContextManager:
        """Begins the display of a run of `iterations`, which is None if --minutes may end the run earlier."""
        self._total = "" if iterations is None else f"/{iterations:,}"
        return nullcontext()

    def advance(self, iteration: int, share: float) -> None:
        """Notes that an iteration is done, and with it this share of the run, in [0, 1]."""

    def report(self, metrics: TrainMetrics, remaining: float) -> None:
        """Shows a log step, `remaining` seconds before the run ends."""
        if not console.is_terminal:
            width = len(self._total) - 1 if self._total else 7
            log(f"{self._prefix}{metrics.iteration:>{width},}{self._total}  {line_of(metrics, remaining)}")

    def end(self) -> None:
        """Notes that the run is over. What is logged from now on is its result."""


class ProgressBar(LogLines):
    """Shows the run as a bar, if the output is a terminal."""

    def begin(self, iterations: int | None) -> AbstractContextManager:
        super().begin(iterations)
        self._bar = Progress(
            TextColumn(f"{{task.fields[iteration]:,}}{self._total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
            transient=True,  # otherwise the bar stays on the screen, and after Ctrl-C it does so twice
            expand=True,
        )
        self._task = self._bar.add_task("train", total=1.0, iteration=0, status="first step ...")
        return self._bar

    def advance(self, iteration: int, share: float) -> None:
        self._bar.update(self._task, completed=share, iteration=iteration)

    def report(self, metrics: TrainMetrics, remaining: float) -> None:
        super().report(metrics, remaining)
        self._bar.update(self._task, status=line_of(metrics, remaining, wide=console.width >= WIDE))

    def end(self) -> None:
        if console.is_terminal:
            self._bar.stop()
