"""Run folders, found and read: what a report is made of. Nothing is computed of images or weights here."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.monitor.files import REPORT, read_report
from fastae.monitor.summary import UsageReport
from fastae.monitor.text import heading, remarks, rows
from fastae.parsing import nested
from fastae.report.curves import Events, Series, read_events
from fastae.run import RunFolder

TRAIN, HELD_OUT = "loss_index/train", "loss_index/held_out"
CONFIG = "config.json"


@dataclass(frozen=True)
class Speed:
    """What the loop measured of itself over its windows, the first left out, which warms up and compiles.

    data_wait: share of the time without a batch. step_ms_p50, _p95: the typical window's percentiles. None
    where nothing was logged.
    """

    images_per_second: float | None
    data_wait: float | None
    step_ms_p50: float | None
    step_ms_p95: float | None


@dataclass(frozen=True)
class Run:
    """One run's folder. name: of the folder, made longer where two have the same.

    gpu: None where there is no report that can be read; `gpu_note` then says why.
    """

    name: str
    path: Path
    config: TrainConfig
    description: Mapping[str, Any]
    events: Events
    gpu: UsageReport | None
    gpu_note: str

    @property
    def loss(self) -> str:
        return self.config.loss

    @property
    def train(self) -> Series:
        return self.events.series(TRAIN)

    @property
    def held_out(self) -> Series:
        return self.events.series(HELD_OUT)

    @property
    def iteration(self) -> int:
        """The last that was logged; 0 where none was."""
        return max(
            (int(series.steps[-1]) for series in (self.train, self.held_out) if len(series)), default=0
        )

    @property
    def ended(self) -> bool:
        """Whether it came to its end: all its iterations, or its --minutes."""
        minutes = self.config.minutes or math.inf
        return self.iteration >= self.config.iterations or self.events.seconds >= 0.99 * 60 * minutes

    @property
    def on_gpu(self) -> bool:
        """By its sampler, else by the description of its device, where a CPU's counts its threads."""
        if self.gpu is not None and self.gpu.summary.gpus:
            return True
        device = self.told("device")
        return bool(device) and not device.endswith(" threads")

    @property
    def wall_seconds(self) -> float:
        """By its sampler, which sees compiling too, or by its events, which cover all of its sessions."""
        return max(self.events.seconds, self.gpu.summary.seconds if self.gpu else 0.0)

    @property
    def resumed(self) -> bool:
        """Whether it went on from a checkpoint: its sampler's report then is of the last session alone."""
        return bool(self.description.get("resumed"))

    @property
    def ranks(self) -> int:
        """GPUs, or processes, that shared it."""
        found = re.search(r"\b(\d+) ranks\b", self.told("step"))
        return int(found[1]) if found else 1

    @property
    def kwh(self) -> float | None:
        """Of all its sessions and GPUs; None where that is not known."""
        known = self.gpu is not None and not self.resumed and self.ranks == 1
        return self.gpu.summary.kwh if known and self.gpu else None

    @property
    def command(self) -> str:
        """What a shell needs to repeat it: every setting that is not the default, but its folder."""
        return shlex.join(("fastae", "train", *_options(self.config)))

    def non_finite_steps(self) -> int:
        """How many iterations it noted down because their loss was no number."""
        try:
            lines = RunFolder(self.path).non_finite.read_text(errors="replace").splitlines()
        except OSError:
            return 0
        return len({line.partition("\t")[0] for line in lines})

    def told(self, *names: str) -> str:
        """A value of config.json as text, whatever is there: `told("data", "folder")`. Empty for none."""
        value = nested(self.description, *names)
        return "" if value is None else str(value)

    def speed(self) -> Speed:
        rate = self.events.series("speed/images_per_second")
        iterations = np.diff(rate.steps, prepend=0)
        chosen = np.isfinite(rate.values) & (rate.values > 0)
        if chosen.sum() > 1:
            chosen[np.argmax(chosen)] = False
        if not chosen.any():
            return Speed(None, None, None, None)
        images = iterations[chosen] * self.config.batch_size
        seconds = images / rate.values[chosen]
        wait = self.events.series("speed/data_wait_share")
        waits = np.array([wait.at(step) for step in rate.steps[chosen]])
        p50, p95 = (self._typical(f"speed/step_ms_{name}", rate.steps[chosen]) for name in ("p50", "p95"))
        return Speed(
            images_per_second=float(images.sum() / seconds.sum()),
            data_wait=_number((waits * seconds).sum() / seconds.sum()),
            step_ms_p50=p50,
            step_ms_p95=p95,
        )

    def _typical(self, tag: str, steps: np.ndarray) -> float | None:
        series = self.events.series(tag)
        values = np.array([series.at(step) for step in steps])
        return _number(np.median(values))


def gather(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in, or one or two levels below, these folders, and what was wrong with some, in lines.

    In the order of the losses, then seeds. Raises FastaeError where there is no run, or a folder that was
    named is none and holds none.
    """
    runs, troubles = [], []
    for path, named in _find(folders).items():
        try:
            runs.append(_read(path))
        except FastaeError as error:
            if named:
                raise
            troubles.append(f"{error}: left out")
    if not runs:
        raise FastaeError("; ".join(troubles))
    order = {loss: place for place, loss in enumerate(LOSSES)}
    runs.sort(key=lambda run: (order[run.loss], run.config.seed, str(run.path)))
    for run in runs:
        troubles += run.events.problems
        if not len(run.train) and not len(run.held_out):
            troubles.append(f"{run.path} has logged nothing yet")
    if not any(len(run.train) or len(run.held_out) for run in runs):
        raise FastaeError(f"nothing to report on: {'; '.join(troubles)}")
    return _named(runs), troubles


def _find(folders: Sequence[Path]) -> dict[Path, bool]:
    """Folder -> whether the user named it as such (and not one above it). Each folder once."""
    found: dict[Path, bool] = {}
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise FastaeError(f"run folder {str(folder)!r} {what}")
        named = (folder / CONFIG).is_file()
        below = [folder] if named else _below(folder)
        if not below:
            raise FastaeError(f"no run in {str(folder)!r}: no {CONFIG} there, nor one or two levels below")
        for path in below:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found[path] = named
    return found


def _below(folder: Path) -> list[Path]:
    try:
        found = [path for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{CONFIG}")]
    except OSError as error:
        raise FastaeError(f"cannot look into {str(folder)!r}: {error.strerror or error}") from None
    return sorted(path.parent for path in found if path.is_file())


def _read(path: Path) -> Run:
    folder = RunFolder(path)
    config = folder.settings()
    gpu, note = None, ""
    try:
        gpu = read_report(path)
        _try_out(gpu)
    except FastaeError as error:
        note = str(error)
    except (AttributeError, TypeError, ValueError):
        gpu, note = None, f"{str(path / REPORT)!r} is damaged"
    return Run(path.name, path, config, folder.describe(), read_events(path), gpu, note)


def _try_out(report: UsageReport) -> None:
    """Reads all of it once: what no sampler writes raises here, not in the middle of a page."""
    summary = report.summary
    list(rows(summary))
    remarks(summary)
    heading(report)
    numbers = [summary.seconds, *summary.phases.values(), summary.data_wait or 0.0, summary.kwh or 0.0]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("not finite")


def _named(runs: Iterable[Run]) -> list[Run]:
    """Folders of one name, of two sweeps, get the name of the folder above them as well."""
    runs = list(runs)
    names = [run.path.resolve().name for run in runs]
    named = []
    for run, name in zip(runs, names, strict=True):
        above = run.path.resolve().parent.name
        named.append(dataclasses.replace(run, name=name if names.count(name) == 1 else f"{above}/{name}"))
    return named


def _options(config: TrainConfig) -> list[str]:
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name == "out":
            continue
        if isinstance(value, bool):
            options.append(flag(field.name) if value else flag(f"no_{field.name}"))
        else:
            options += [flag(field.name), str(value)]
    return options


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
