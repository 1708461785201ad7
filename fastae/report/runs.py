"""Run folders, found and read, but for their images and checkpoints.

Anybody may have written them: files are opened if they are files, and read within bounds.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.monitor.files import read_report
from fastae.runs.events import DamagedFile, event_files, records
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import METRICS, NAME, Metrics, Rows, read_metrics
from fastae.utils.console import printable
from fastae.utils.files import require_file
from fastae.utils.parsing import nested

CONFIG = "config.json"

MAX_NAN_BYTES = 1 << 24
"""Of nan.txt: some 200,000 images; what follows is not counted."""

MAX_TEXT = 200
"""Characters of a text in config.json that are shown."""

MAX_RECORD = 32_768
"""Bytes of an event; larger ones are pictures and skipped."""


@dataclass(frozen=True)
class Series:
    """Values against iterations, which ascend: int64 and float64, both (n,). A value may be nan or inf."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> Series:
        known = np.isfinite(self.values)
        return Series(self.steps[known], self.values[known])

    def at(self, step: int) -> float:
        """The value at this iteration; nan if there is none."""
        found = self.values[self.steps == step]
        return float(found[0]) if len(found) else math.nan


@dataclass(frozen=True)
class Run:
    """One run's folder. name: of the folder, with its parent's if two have the same.

    kwh: of the run, by its GPU; None if that is not known, as of several ranks or sessions.
    """

    name: str
    path: Path
    config: TrainConfig
    description: Mapping[str, Any]
    metrics: Metrics
    kwh: float | None

    @property
    def loss(self) -> str:
        return self.config.loss

    @property
    def train(self) -> Series:
        """loss_index (MSE x 1e7) of training batches."""
        return Series(self.metrics.train.iterations, self.metrics.train.values["loss_index"])

    @property
    def held_out(self) -> Series:
        """loss_index of the held-out images."""
        return Series(self.metrics.held_out.iterations, self.metrics.held_out.values["loss_index"])

    @property
    def iteration(self) -> int:
        """The last that was logged; 0 if none was."""
        return max((int(each.steps[-1]) for each in (self.train, self.held_out) if len(each)), default=0)

    @property
    def ended(self) -> bool:
        """Whether it reached its iterations or, limited by --minutes, the evaluation that ends it."""
        timed = self.config.minutes is not None and len(self.train) and len(self.held_out)
        return self.iteration >= self.config.iterations or bool(
            timed and self.train.steps[-1] == self.held_out.steps[-1] > 0
        )

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and seconds between its log steps, both (n,), by the speed that it logged."""
        rates = self.metrics.train.values["images_per_second"]
        images = np.diff(self.metrics.train.iterations, prepend=0) * float(self.config.batch_size)
        known = np.isfinite(rates) & (rates > 1e-9) & (images > 0)
        return images[known], images[known] / rates[known]

    @property
    def images_per_second(self) -> float | None:
        """Of all of the run but the slowest window, which warms up and compiles; None if none was logged."""
        images, seconds = self.windows()
        if len(images) > 1:
            kept = np.arange(len(images)) != np.argmin(images / seconds)
            images, seconds = images[kept], seconds[kept]
        return float(images.sum() / seconds.sum()) if seconds.sum() > 0 else None

    @property
    def seconds(self) -> float:
        """Of training, in all sessions: steps and the wait for data, without start and evaluations."""
        return float(self.windows()[1].sum())

    @property
    def command(self) -> str:
        return shlex.join(("fastae", "train", *options(self.config)))

    def non_finite_steps(self) -> int:
        """How many iterations it noted down because their loss was not finite."""
        path = RunFolder(self.path).non_finite
        try:
            require_file(path)
            with path.open("rb") as file:
                lines = file.read(MAX_NAN_BYTES).splitlines()
        except OSError:
            return 0
        return len({line.partition(b"\t")[0] for line in lines})

    def text(self, *names: str) -> str:
        """A value of config.json as text, whatever it is: `text("data", "folder")`. Empty for none."""
        value = nested(self.description, *names)
        return "" if value is None else printable(str(value))[:MAX_TEXT]


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in, or one or two levels below, these folders, and what is wrong with some, in lines.

    In the order of the losses, then of seeds. Raises FastaeError if there is no run that has logged anything,
    or a folder that was named is no run and holds none.
    """
    runs, warnings = [], []
    for path, named in _find(folders).items():
        try:
            run = _read(path)
            damaged = run.metrics.damaged
            warnings += [f"{path / NAME}: {damaged:,} damaged lines were skipped"] if damaged else []
            warnings += [] if len(run.train) or len(run.held_out) else [f"{path} has logged nothing yet"]
            runs.append(run)
        except FastaeError as error:
            if named:
                raise
            warnings.append(f"skipped: {error}")
    if not any(len(run.train) or len(run.held_out) for run in runs):
        raise FastaeError(f"nothing to report on: {'; '.join(warnings)}")
    order = list(LOSSES)
    runs.sort(key=lambda run: (order.index(run.loss), run.config.seed, str(run.path)))
    names = Counter(run.name for run in runs)
    for place, run in enumerate(runs):
        if names[run.name] > 1:
            runs[place] = dataclasses.replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
    return runs, warnings


def options(config: TrainConfig, skip: Sequence[str] = ()) -> list[str]:
    """The command line's options for what is not the default, but for --out and those in `skip`."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name == "out" or field.name in skip:
            continue
        if isinstance(value, bool):
            found.append(flag(field.name) if value else flag(f"no_{field.name}"))
        else:
            found += [flag(field.name), str(value)]
    return found


def _find(folders: Sequence[Path]) -> dict[Path, bool]:
    """Folder -> whether the user named it as such (and not one above it). Each folder once."""
    found: dict[Path, bool] = {}
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise FastaeError(f"run folder {str(folder)!r} {what}")
        named = (folder / CONFIG).is_file()
        below = [path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{CONFIG}")]
        if not named and not below:
            raise FastaeError(f"no run in {str(folder)!r}: no {CONFIG} there, nor one or two levels below")
        for path in [folder] if named else sorted(below):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found[path] = named
    return found


def _read(path: Path) -> Run:
    folder = RunFolder(path)
    config, description = folder.settings(), folder.describe()
    try:
        metrics = read_metrics(path / NAME)
    except FileNotFoundError:
        metrics = _read_events(path)
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(path / NAME)!r} cannot be read: {error}") from None
    try:
        kwh = read_report(path).summary.kwh
    except FastaeError:
        kwh = None
    whole = description.get("world_size", 1) == 1 and not description.get("resumed")
    known = kwh is not None and whole and 0 <= kwh < math.inf
    return Run(path.resolve().name, path, config, description, metrics, kwh if known else None)


def _read_events(path: Path) -> Metrics:
    """Of a run without metrics.csv what it would hold, from TensorBoard's files; torn ones to their tear."""
    tags = {"loss_index/train": "loss_index", "speed/images_per_second": "images_per_second"}
    points: dict[bool, dict[int, dict[str, float]]] = {False: {}, True: {}}
    damaged = 0
    for file in event_files(path):
        try:
            for event, _ in records(file, MAX_RECORD):
                for value in event.summary.value:
                    held_out = value.tag == "loss_index/held_out"
                    if name := "loss_index" if held_out else tags.get(value.tag):
                        points[held_out].setdefault(event.step, {})[name] = value.simple_value
        except (DamagedFile, OSError):
            damaged += 1

    def rows(points: dict[int, dict[str, float]]) -> Rows:
        steps = sorted(step for step in points if step >= 0)
        columns = {name: np.array([points[s].get(name, math.nan) for s in steps], float) for name in METRICS}
        return Rows(np.array(steps, np.int64), columns)

    return Metrics(rows(points[False]), rows(points[True]), damaged)
