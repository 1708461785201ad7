"""A sweep's folder: its plan and the state of its runs in `sweep.json`, and the runs' folders beside it."""

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

from fastae.config import TrainConfig, flag
from fastae.data.files.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.runs.folder import RunFolder, held_folder
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
    """One run, with the last figures that it logged. seconds: of training, in all sessions; its share, if
    several runs take turns."""

    name: str
    loss: str
    seed: int
    state: RunState = RunState.WAITING
    iteration: int = 0
    loss_index: float | None = None
    held_out: float | None = None
    images_per_second: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Content:
    """sweep.json. plan: the settings that may not differ when the sweep is resumed."""

    plan: dict[str, Any]
    runs: tuple[SweepRun, ...]


@dataclass(frozen=True)
class SweepConfig:
    """losses: names, in the article's order. repeats: runs of each, with other seeds. same_init: one seed
    for all losses, so that weights, images and augmentation are the same."""

    train: TrainConfig
    losses: tuple[str, ...] = tuple(LOSSES)
    repeats: int = 1
    same_init: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.losses if name not in LOSSES]
        if unknown:
            raise FastaeError(f"--losses {', '.join(unknown)!r}: not one of {', '.join(LOSSES)}")
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise FastaeError("--losses must name at least one loss, and none twice")
        Range(1, 1000).require(self.repeats, "--repeats")
        replace(self.train, seed=max(run.seed for run in self.runs()))  # raises for one that is too large

    def runs(self) -> tuple[SweepRun, ...]:
        """Every loss, then every loss again with the next seeds."""
        runs = []
        for repeat in range(self.repeats):
            for place, loss in enumerate(LOSSES):
                if loss in self.losses:
                    offset = repeat if self.same_init else len(LOSSES) * repeat + place
                    name = loss if repeat == 0 else f"{loss}-{repeat + 1}"
                    runs.append(SweepRun(name, loss, self.train.seed + offset))
        return tuple(runs)

    def plan(self) -> dict[str, Any]:
        """The settings that may not differ when the sweep is resumed."""
        settings = {
            entry.name: getattr(self.train, entry.name)
            for entry in dataclasses.fields(TrainConfig)
            if not entry.metadata["free"] and entry.name not in ("loss", "out")
        }
        losses = [name for name in LOSSES if name in self.losses]
        own = {"losses": losses, "repeats": self.repeats, "same_init": self.same_init}
        return {"iterations": self.train.iterations, "minutes": self.train.minutes, **settings, **own}


class SweepFolder:
    """A sweep has begun once sweep.json and images.json, the list of the images of all runs, are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "sweep.json"
        self.manifest_file = path / NAME

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def read(self) -> Content:
        """Raises FastaeError if sweep.json is missing or not what fastae writes."""
        try:
            content: Content = read_json(self.file, Content)
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.file)!r} cannot be read as a sweep: {error}") from None
        for run in content.runs:  # the names of folders: none may lie outside
            if run.loss not in LOSSES or not re.fullmatch(rf"{run.loss}(-[0-9]+)?", run.name):
                raise FastaeError(f"{str(self.file)!r} holds a run {run.name!r:.60}, which no sweep does")
        return content

    def change(self, name: str, **values: Any) -> None:
        """Sets fields of one run. Raises OSError."""
        with FileLock(self.path / ".sweep.json.lock"):  # other ranks change theirs
            content = self.read()
            runs = tuple(replace(run, **values) if run.name == name else run for run in content.runs)
            write_json(self.file, dataclasses.asdict(replace(content, runs=runs)))

    def manifest(self) -> Manifest | None:
        """The images that all runs train on; None before it has begun. Raises FastaeError."""
        return Manifest.read(self.manifest_file) if self.manifest_file.exists() else None

    def begin(self, config: SweepConfig, manifest: Manifest) -> None:
        """Writes the plan and the images of a sweep that has not begun. Raises FastaeError."""
        if self.manifest_file.exists():
            return
        try:
            write_json(self.file, dataclasses.asdict(Content(config.plan(), config.runs())))
            manifest.write(self.manifest_file)
        except OSError as error:
            self.file.unlink(missing_ok=True)
            reason = error.strerror or error
            raise FastaeError(f"cannot write the sweep folder {str(self.path)!r}: {reason}") from None

    def require_resumable(self, config: SweepConfig) -> None:
        """Raises FastaeError unless this is the folder of this sweep, or empty. Raises OSError."""
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
    """The folder of a sweep, new or to be resumed, kept from others while the block runs.

    Default: runs/TIME-sweep. It is removed again if the sweep does not begin. Raises FastaeError if another
    sweep, or something else, is in it, or it cannot be written.
    """

    def require(place: Path) -> None:
        SweepFolder(place).require_resumable(config)

    with held_folder(path, "sweep", "sweep", NAME, require) as place:
        refuse_links(place)
        yield SweepFolder(place)
