"""The table of a sweep's runs: live on a terminal; otherwise printed once, at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from rich.live import Live
from rich.table import Table

from fastae.config import TrainConfig
from fastae.experiment.article import ARTICLE_IMAGES, ARTICLE_SECONDS, speed_ratio
from fastae.runs.sweep_folder import RunState, SweepRun
from fastae.utils.console import console, duration


class SweepTable(AbstractContextManager):
    """Shows the runs that `runs()` returns while the block runs, and once more at its end."""

    def __init__(self, runs: Callable[[], Sequence[SweepRun]], config: TrainConfig) -> None:
        self._runs = runs
        self._config = config
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepTable:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        console.print(self._render())

    def _render(self) -> Table:
        runs = self._runs()
        table = Table(box=None, pad_edge=False, caption=caption(runs, self._config), caption_justify="left")
        for heading in ("loss", "state", "iteration", "loss_index", "held out", "images/s", "time"):
            table.add_column(heading, justify="left" if heading in ("loss", "state") else "right")
        for run in runs:
            figures = ((run.loss_index, ",.0f"), (run.held_out, ",.0f"), (run.images_per_second, ",.1f"))
            cells = ("" if value is None else format(value, form) for value, form in figures)
            time = duration(run.seconds) if run.seconds else ""
            table.add_row(run.name, run.state, f"{run.iteration:,}", *cells, time)
        return table


def caption(runs: Sequence[SweepRun], config: TrainConfig) -> str:
    """Returns the time left, and the time spent compared with the article's; empty before the first step."""
    images = config.batch_size * sum(run.iteration for run in runs)
    seconds = sum(run.seconds for run in runs)
    if not images or not seconds:
        return ""
    pace = config.batch_size * seconds / images
    limit = 60 * (config.minutes or math.inf)
    left = sum(
        min((config.iterations - run.iteration) * pace, max(0.0, limit - run.seconds))
        for run in runs
        if run.state not in (RunState.FINISHED, RunState.FAILED)
    )
    remaining = f"{duration(left)} left; " if left else ""
    spent = f"{remaining}{duration(seconds)} for {images:,} images"
    article = ARTICLE_SECONDS * images / ARTICLE_IMAGES
    if article < 1 or not config.has_article_size:
        return spent
    ratio = speed_ratio(seconds, article)
    return f"{spent}; the article's GPU took {duration(article)} for as many: {ratio}"
