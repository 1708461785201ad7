"""The table of a sweep's runs: live on a terminal; otherwise printed once, at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from rich.live import Live
from rich.table import Table

from fastae.experiment.article import ARTICLE_IMAGES, ARTICLE_SECONDS, speed_ratio
from fastae.sweep.folder import RunStatus, SweepFolder, read_status
from fastae.sweep.plan import SweepConfig
from fastae.utils.console import console, duration


class SweepTable(AbstractContextManager):
    """Shows the runs of a sweep, as their folders say, while the block runs, and once more at its end.

    `ranks` is the number of ranks that share the runs.
    """

    def __init__(self, folder: SweepFolder, config: SweepConfig, ranks: int) -> None:
        self.current: str | None = None
        """The name of the run that this process trains."""
        self.failed: Mapping[str, str] = {}
        """Name of a run -> why it failed."""
        self._folder = folder
        self._config = config
        self._ranks = ranks
        self._read: dict[Path, tuple[object, RunStatus]] = {}
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepTable:
        if console.is_terminal and not console.quiet:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        console.print(self._render())

    def status(self, name: str) -> RunStatus:
        """Returns the status of a run, which is read again when its metrics.csv has changed."""
        run = self._folder.run(name)
        try:
            found = run.metrics_file.stat()
            version: object = (found.st_mtime_ns, found.st_size, run.weights_file.exists())
        except OSError:
            version = None
        kept = self._read.get(run.path)
        if kept is None or kept[0] != version or version is None:
            kept = version, read_status(run, self._config.train.batch_size)
            self._read[run.path] = kept
        return kept[1]

    def state(self, name: str, status: RunStatus) -> str:
        """Returns the state of a run in one word."""
        if name in self.failed:
            return "failed"
        if status.finished_at is not None:
            return "finished"
        if name == self.current:
            return "running"
        return "begun" if status.has_begun else "waiting"

    def _render(self) -> Table:
        statuses = {run.name: self.status(run.name) for run in self._config.runs()}
        states = {name: self.state(name, status) for name, status in statuses.items()}
        left = [
            [statuses[run.name] for run in runs if states[run.name] not in ("finished", "failed")]
            for runs in (self._config.runs_of(rank, self._ranks) for rank in range(self._ranks))
        ]
        text = caption([*statuses.values()], left, self._config)
        table = Table(box=None, pad_edge=False, caption=text, caption_justify="left")
        for heading in ("loss", "state", "iteration", "loss_index", "held out", "images/s", "time"):
            table.add_column(heading, justify="left" if heading in ("loss", "state") else "right")
        for name, status in statuses.items():
            figures = (
                (status.loss_index, ",.0f"),
                (status.held_out, ",.0f"),
                (status.images_per_second, ",.1f"),
            )
            cells = ("" if math.isnan(value) else format(value, form) for value, form in figures)
            time = duration(status.seconds) if status.seconds else ""
            table.add_row(name, states[name], f"{status.iteration:,}", *cells, time)
        return table


def caption(runs: list[RunStatus], left: list[list[RunStatus]], config: SweepConfig) -> str:
    """Returns the time left, and the time spent compared with the article's; empty before the first log step.

    Args:
        runs: all runs of the sweep.
        left: those that are still to be trained, by each rank. The ranks train at the same time.
        config: the sweep's settings.
    """
    train = config.train
    images = train.batch_size * sum(run.iteration for run in runs)
    seconds = sum(run.seconds for run in runs)
    if not images or not seconds:
        return ""
    pace = train.batch_size * seconds / images
    limit = 60 * (train.minutes or math.inf)
    to_do = max(
        sum(min((train.iterations - run.iteration) * pace, max(0.0, limit - run.seconds)) for run in own)
        for own in left
    )
    remaining = f"{duration(to_do)} left; " if to_do else ""
    spent = f"{remaining}{duration(seconds)} for {images:,} images"
    article = ARTICLE_SECONDS * images / ARTICLE_IMAGES
    if article < 1 or not config.has_article_size:
        return spent
    ratio = speed_ratio(seconds, article)
    return f"{spent}; the article's GPU took {duration(article)} for as many: {ratio}"
