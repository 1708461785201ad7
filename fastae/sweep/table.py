"""The runs of a sweep as they go: a live table on a terminal; elsewhere lines, and the table at the end."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.live import Live
from rich.table import Table

from fastae.config import TrainConfig
from fastae.sweep.plan import FAILED, FINISHED, Entry, Sweep, article_seconds
from fastae.training.progress import Figures, show_line
from fastae.utils.console import console, duration, say

RECORD_SECONDS = 10.0
"""A sweep that is killed has lost so much of its account, at most; its runs keep their own."""


class SweepTable(AbstractContextManager):
    """Shows a sweep, and is the `fastae.training.progress.Display` of its runs.

    config: what its runs share. `entry` is the run under way.
    """

    def __init__(self, sweep: Sweep, config: TrainConfig) -> None:
        self.sweep = sweep
        self.entry: Entry | None = None
        self._config = config
        self._began = self._recorded = 0.0
        self._before = 0.0
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepTable:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if console.is_terminal:
            self._live.stop()
        console.print(self.render())

    def start(self, entry: Entry) -> None:
        """This run begins, or goes on."""
        self.entry = entry
        self._began, self._before = time.monotonic(), entry.seconds

    def begin(self, start: int, iterations: int) -> AbstractContextManager:
        assert self.entry is not None
        self.entry.iteration = start
        return nullcontext()

    def advance(self) -> None:
        assert self.entry is not None
        self.entry.iteration += 1
        self.entry.seconds = self.spent()

    def report(self, iteration: int, figures: Figures) -> None:
        assert self.entry is not None
        self.entry.loss_index = figures.loss_index
        self.entry.images_per_second = figures.images_per_second
        if not console.is_terminal:
            show_line(iteration, self._config.iterations, figures)
        if time.monotonic() - self._recorded > RECORD_SECONDS:
            self.record()

    def record(self, **values: Any) -> None:
        """Writes how far the run under way is, and `values`, into the sweep's file."""
        assert self.entry is not None
        figures = {
            name: getattr(self.entry, name) for name in ("iteration", "loss_index", "images_per_second")
        }
        self.sweep.change(self.entry.name, seconds=self.spent(), **figures, **values)
        self._recorded = time.monotonic()

    def spent(self) -> float:
        """Seconds of the run under way, those of earlier sessions included."""
        return self._before + time.monotonic() - self._began

    def render(self) -> Table:
        entries = [self.entry if self.entry and self.entry.name == e.name else e for e in self.sweep.entries]
        table = Table(box=None, pad_edge=False, caption=self.caption(entries), caption_justify="left")
        for heading in ("loss", "state", "iteration", "loss_index", "held out", "images/s", "time"):
            table.add_column(heading, justify="left" if heading in ("loss", "state") else "right")
        for entry in entries:
            table.add_row(
                entry.name,
                entry.state,
                f"{entry.iteration:,}",
                _number(entry.loss_index),
                _number(entry.held_out),
                _number(entry.images_per_second, 1),
                duration(entry.seconds) if entry.seconds else "",
            )
        return table

    def caption(self, entries: list[Entry]) -> str:
        """Time left, and time spent against the article's."""
        config = self._config
        images = config.batch_size * sum(entry.iteration for entry in entries)
        seconds = sum(entry.seconds for entry in entries)
        if not images or not seconds:
            return ""
        pace = config.batch_size * seconds / images
        limit = 60 * (config.minutes or math.inf)
        left = sum(
            min((config.iterations - entry.iteration) * pace, max(0.0, limit - entry.seconds))
            for entry in entries
            if entry.state not in (FINISHED, FAILED)
        )
        remaining = f"{duration(left)} left; " if left else ""
        then = article_seconds(images)
        factor, word = (then / seconds, "faster") if then > seconds else (seconds / then, "slower")
        return (
            f"{remaining}{duration(seconds)} spent on {images:,} images; the article's GPU took "
            f"{duration(then)} for as many: {factor:,.2g} times {word}"
        )


def announce(entry: Entry, number: int, of: int) -> None:
    """A heading between the runs' lines."""
    verb = "goes on" if entry.iteration else "begins"
    say(f"\n{entry.name}: run {number} of {of} {verb}, seed {entry.seed}")


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
