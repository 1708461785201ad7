"""A sweep's folder: sweep.json with the plan and the state of the runs, images.json, the runs' folders."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import FIXED, TrainConfig, flag
from fastae.data.files.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES
from fastae.runs.folder import RunFolder, locked_folder
from fastae.utils.arguments import Range
from fastae.utils.files import refuse_links, write_json
from fastae.utils.json import read_json


class RunState(StrEnum):
    """The state of one run of a sweep."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, with the last figures that it logged."""

    name: str
    """The name of the run's folder: its loss, with -2, -3, ... for repeats."""

    loss: str
    seed: int
    state: RunState = RunState.WAITING
    iteration: int = 0

    loss_index: float | None = None
    """The error of the last logged training batch: MSE x 1e7."""

    held_out: float | None = None
    """The error of the held-out images at the last evaluation: MSE x 1e7."""

    images_per_second: float | None = None

    seconds: float = 0.0
    """The time of training in all sessions. If several runs take turns, it is the run's share of it."""

    error: str = ""
    """Why the run failed; empty if it did not."""


@dataclass(frozen=True)
class SweepFile:
    """The content of sweep.json."""

    plan: dict[str, Any]
    """The settings that cannot change when the sweep is resumed."""

    runs: tuple[SweepRun, ...]


@dataclass(frozen=True)
class SweepConfig:
    """The settings of a sweep. FastaeError is raised for invalid ones."""

    train: TrainConfig
    """The settings of all runs. Only loss, folder and seed differ; seeds are counted from this seed."""

    losses: tuple[str, ...] = tuple(LOSSES)
    """The names of the losses, each once."""

    repeats: int = 1
    """The number of runs of each loss, with different seeds."""

    same_init: bool = False
    """Whether all losses have the same seed, and so the same initial weights, images and augmentation."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.losses if name not in LOSSES]
        if unknown:
            raise FastaeError(f"--losses {', '.join(unknown)!r}: not one of {', '.join(LOSSES)}")
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise FastaeError("--losses must name at least one loss, and none twice")
        Range(1, 1000).require(self.repeats, "--repeats")
        replace(self.train, seed=max(run.seed for run in self.runs()))  # raises if a seed is too large

    def runs(self) -> tuple[SweepRun, ...]:
        """Returns one run of each loss in the article's order, then the repeats with the next seeds."""
        runs = []
        for repeat in range(self.repeats):
            for index, loss in enumerate(LOSSES):
                if loss in self.losses:
                    offset = repeat if self.same_init else len(LOSSES) * repeat + index
                    name = loss if repeat == 0 else f"{loss}-{repeat + 1}"
                    runs.append(SweepRun(name, loss, self.train.seed + offset))
        return tuple(runs)

    def plan(self) -> dict[str, Any]:
        """Returns the settings that cannot change when the sweep is resumed."""
        settings = {name: getattr(self.train, name) for name in FIXED if name != "loss"}
        losses = [name for name in LOSSES if name in self.losses]
        own = {"losses": losses, "repeats": self.repeats, "same_init": self.same_init}
        return {"iterations": self.train.iterations, "minutes": self.train.minutes, **settings, **own}


class SweepFolder:
    """The paths in a sweep's folder, and what is read from and written to them.

    A sweep has begun once its folder holds sweep.json and images.json, the list of the images of all runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "sweep.json"
        self.manifest_file = path / NAME

    def run(self, name: str) -> RunFolder:
        """Returns the folder of a run, which need not exist."""
        return RunFolder(self.path / name)

    def read(self) -> SweepFile:
        """Reads sweep.json. Raises FastaeError if it is missing, or is not what fastae writes."""
        try:
            content: SweepFile = read_json(self.file, SweepFile)
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.file)!r} cannot be read as a sweep: {error}") from None
        for run in content.runs:  # a folder has this name, and must not lie outside
            if run.loss not in LOSSES or not re.fullmatch(rf"{run.loss}(-[0-9]+)?", run.name):
                raise FastaeError(f"{str(self.file)!r} contains an invalid name of a run: {run.name!r:.60}")
        return content

    def change(self, changed: SweepRun) -> None:
        """Replaces the run of this name in sweep.json. Raises OSError, and FastaeError as `read` does."""
        with FileLock(self.path / ".sweep.json.lock"):  # other ranks change their own runs
            content = self.read()
            runs = tuple(changed if run.name == changed.name else run for run in content.runs)
            write_json(self.file, dataclasses.asdict(replace(content, runs=runs)))

    def read_manifest(self) -> Manifest | None:
        """Returns the images that all runs train on; None if the sweep has not begun.

        Raises FastaeError if images.json is damaged or edited.
        """
        return Manifest.read(self.manifest_file) if self.manifest_file.exists() else None

    def begin(self, config: SweepConfig, manifest: Manifest) -> None:
        """Writes sweep.json and images.json, unless the sweep has begun.

        Raises FastaeError if they cannot be written. The sweep has then not begun.
        """
        if self.manifest_file.exists():
            return
        try:
            write_json(self.file, dataclasses.asdict(SweepFile(config.plan(), config.runs())))
            manifest.write(self.manifest_file)
        except OSError as error:
            self.file.unlink(missing_ok=True)
            reason = error.strerror or error
            raise FastaeError(f"cannot write the sweep folder {str(self.path)!r}: {reason}") from None

    def require_resumable(self, config: SweepConfig) -> None:
        """Raises FastaeError unless the folder is empty or holds a sweep with these settings.

        Raises OSError if the folder cannot be listed.
        """
        if self.file.exists():
            found, wanted = self.read().plan, config.plan()
            differing = [
                f"{flag(name)} {found.get(name)}, not {wanted.get(name)}"
                for name in dict.fromkeys([*wanted, *found])
                if found.get(name) != wanted.get(name)
            ]
            if differing:
                raise FastaeError(
                    f"{str(self.path)!r} holds a sweep with {', '.join(differing)}: "
                    "give the same settings to resume it, or name another --out"
                )
        elif self.path.is_dir() and any(not each.name.startswith(".") for each in self.path.iterdir()):
            raise FastaeError(f"--out {str(self.path)!r} is not empty and holds no sweep: name a new folder")


@contextmanager
def open_sweep(config: SweepConfig, path: Path | None) -> Iterator[SweepFolder]:
    """Yields the locked folder of a sweep that is new or is resumed: `path`, or runs/TIME-sweep.

    The folder is removed if the sweep does not begin. Raises FastaeError if it holds another sweep or other
    files, is locked by another process, or cannot be written.
    """

    def require(folder: Path) -> None:
        SweepFolder(folder).require_resumable(config)

    with locked_folder(path, name="sweep", kind="sweep", begun=NAME, require=require) as folder:
        refuse_links(folder)
        yield SweepFolder(folder)
