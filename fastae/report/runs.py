"""Finds and reads run folders, except for their images and checkpoints.

Anybody may have written a run folder, so only regular files are opened, and only a limited size is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import NamedTuple

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.experiment.definition import ARTICLES_MODEL
from fastae.experiment.losses import ELEMENTS, REDUCTIONS, Element, Loss
from fastae.monitor.files import read_reports
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import Metrics, Rows, read_metrics
from fastae.runs.weights import finished_at
from fastae.utils.console import printable
from fastae.utils.files import mode_at

CONFIG = "config.json"

PRIMARY = "held-out error"
"""The heading of the metric by which losses are ranked."""


class Quality(NamedTuple):
    """A metric of the held-out images."""

    column: str
    """Its column in metrics.csv."""

    form: Callable[[float], str]
    """Returns a value as text."""

    margin: float | None = None
    """The difference from which on two losses are not the same; None if it is not fixed."""


QUALITY = {
    PRIMARY: Quality("loss_index", "{:,.0f}".format),
    "PSNR": Quality("psnr", "{:.2f}".format),
    "SSIM": Quality("ssim", "{:.4f}".format, margin=0.005),
}
"""Heading -> metric of the held-out images. Tables, analysis and figures iterate over it."""

MAX_TEXT = 200
"""The most characters shown of a text in config.json."""


Series = dict[int, float]
"""Iteration -> value, in ascending order. A value may be nan or inf."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as read from its folder."""

    name: str
    """The folder's name, with as many parents as make the names of all runs different."""

    path: Path
    description: RunDescription
    """The content of config.json."""

    loss: Loss
    metrics: Metrics

    @property
    def config(self) -> TrainConfig:
        return self.description.config

    @property
    def has_own_model(self) -> bool:
        """Whether the model is a user's own, which only the user's program can make."""
        return self.description.model not in (None, ARTICLES_MODEL)

    @property
    def model(self) -> str:
        """The model's name as text."""
        return as_text(self.description.model) if self.has_own_model else "article's"

    @cached_property
    def train(self) -> Series:
        """loss_index (MSE x 1e7) of training batches."""
        return _series(self.metrics.train, "loss_index")

    @cached_property
    def held_out(self) -> Series:
        """loss_index of the held-out images."""
        return self.evaluated("loss_index")

    def evaluated(self, metric: str) -> Series:
        """Returns a metric of the held-out images by its column; nan where it was not logged."""
        return _series(self.metrics.held_out, metric)

    @property
    def iteration(self) -> int:
        """The last logged iteration; 0 if there is none."""
        return self.metrics.iteration

    @property
    def finished(self) -> bool:
        """Whether the run has done all iterations or, if limited by --minutes, has final weights."""
        return self.iteration >= self.config.iterations or (
            self.config.minutes is not None and finished_at(RunFolder(self.path)) == self.iteration
        )

    @property
    def images_per_second(self) -> float:
        """The speed without warm-up, as `Metrics.images_per_second` defines it."""
        return self.metrics.images_per_second(self.config.batch_size)

    @property
    def seconds(self) -> float:
        """The training time of all sessions: steps and waiting for data, without start-up and evaluations."""
        return self.metrics.seconds(self.config.batch_size)

    @property
    def kwh(self) -> float:
        """The energy of all of the run's GPUs; nan unless it was measured in all sessions.

        A session that was killed has recorded no energy.
        """
        try:
            energies = [report.summary.kwh for report in read_reports(self.path)]
        except FastaeError:
            return math.nan
        is_complete = None not in energies and len(energies) == 1 + len(self.description.resumed)
        return sum(filter(None, energies)) if is_complete else math.nan


def as_text(value: object) -> str:
    """Returns a value of a run's description as printable text; empty for None."""
    return "" if value is None else printable(str(value))[:MAX_TEXT]


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Finds the runs in these folders, or one or two levels below.

    Returns:
        The runs, sorted by reduction, element and seed; and warnings about runs that are skipped, since they
        cannot be read or have logged nothing.

    Raises:
        FastaeError: no run is left, or a folder is not a run and contains none.
    """
    runs, warnings = [], []
    paths = _find(folders)
    for name, path in zip(_short_names([*paths]), paths.values(), strict=True):
        try:
            run = _read(name, path)
        except FastaeError as error:
            warnings.append(f"skipped: {error}")
            continue
        if damaged := run.metrics.damaged:
            warnings.append(f"{RunFolder(path).metrics_file}: {damaged:,} damaged lines were skipped")
        if run.train or run.held_out:
            runs.append(run)
        else:
            warnings.append(f"skipped: {path} has logged nothing yet")
    if not runs:
        raise FastaeError(f"nothing to report on: {'; '.join(warnings)}")
    return sorted(runs, key=_order), warnings


def element_order(element: Element) -> tuple[int, str]:
    """Sorts elements: fastae's in its order, then a user's own by name."""
    return ELEMENTS.index(element) if element in ELEMENTS else len(ELEMENTS), element.name


def _order(run: Run) -> tuple[object, ...]:
    """Sorts runs by loss and then by seed."""
    element = element_order(run.loss.element)
    return REDUCTIONS.index(run.loss.reduction), element, run.config.seed, str(run.path)


def _series(rows: Rows, column: str) -> Series:
    """Returns iteration -> value of a column."""
    return dict(zip(rows.iterations.tolist(), rows.values[column].tolist(), strict=True))


def _find(folders: Sequence[Path]) -> dict[Path, Path]:
    """Returns resolved path -> path of each run folder. The search does not go below a run."""
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not (found := list(_runs_in(folder, levels=2))):
            raise FastaeError(f"no run in {str(folder)!r}: no {CONFIG} in it, or one or two levels below")
        paths |= {run.resolve(): run for run in found}
    return paths


def _runs_in(folder: Path, levels: int) -> Iterator[Path]:
    """Yields `folder` if it is a run, else the runs at most `levels` below it, in alphabetical order."""
    if mode_at(folder / CONFIG):
        yield folder
    elif levels:
        for child in sorted(folder.glob("*/")):
            with suppress(PermissionError):  # another user's folder
                yield from _runs_in(child, levels - 1)


def _read(name: str, path: Path) -> Run:
    """Reads a run folder. Raises FastaeError."""
    folder = RunFolder(path)
    description = folder.read_description()
    try:
        loss = description.loss
    except ValueError as error:
        raise FastaeError(f"{str(folder.config_file)!r}: {error}") from None
    try:
        return Run(name, path, description, loss, metrics=read_metrics(folder.metrics_file))
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(folder.metrics_file)!r} cannot be read: {error}") from None


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last parts of each path, as few as make the names different."""
    for length in count(1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(paths):
            break
    return names
