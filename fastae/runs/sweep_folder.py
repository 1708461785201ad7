"""What a sweep will run, and how far it is: `sweep.json`, replaced as a whole at each change.

Several processes may work on one sweep, so a change is read, made and written under a lock.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import TrainConfig, flag
from fastae.data.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.runs.folder import DRAFTS, RUNS, RunFolder
from fastae.utils.files import locked, made_folder, write_json
from fastae.utils.json import read_json

ARTICLE_SECONDS = 30 * 3600
ARTICLE_IMAGES = 6 * 100_000 * 64
"""Six runs of 100,000 iterations of 64 images took the article 30 hours."""


class State(StrEnum):
    """Of one run of a sweep."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class SweepRun:
    """One run. seconds: of training, over all sessions. The figures are the last that were logged."""

    name: str
    loss: str
    seed: int
    state: State = State.WAITING
    iteration: int = 0
    loss_index: float | None = None
    held_out: float | None = None
    images_per_second: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Content:
    """sweep.json. plan: what makes it this sweep and no other."""

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
        if self.repeats < 1:
            raise FastaeError(f"--repeats must be positive, not {self.repeats}")

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
        """What makes it this sweep and no other."""
        settings = {
            entry.name: getattr(self.train, entry.name)
            for entry in dataclasses.fields(TrainConfig)
            if not entry.metadata["free"] and entry.name not in ("loss", "out")
        }
        losses = [name for name in LOSSES if name in self.losses]
        own = {"losses": losses, "repeats": self.repeats, "same_init": self.same_init}
        return {"iterations": self.train.iterations, "minutes": self.train.minutes, **settings, **own}


class SweepFolder:
    """`sweep.json`, and the runs' folders beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "sweep.json"
        self.images = path / NAME

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def read(self) -> Content:
        """Raises FastaeError if it is not what `write` wrote."""
        try:
            content: Content = read_json(self.file, Content)
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.file)!r} cannot be read as a sweep: {error}") from None
        for run in content.runs:
            # A run's folder has its name, and is removed if the run had not begun: no other folder is.
            if run.loss not in LOSSES or not re.fullmatch(rf"{run.loss}(-[0-9]+)?", run.name):
                raise FastaeError(f"{str(self.file)!r} holds a run {run.name!r:.60}, which no sweep does")
        return content

    def write(self, content: Content) -> None:
        """Raises OSError."""
        write_json(self.file, dataclasses.asdict(content))

    def change(self, name: str, **values: Any) -> SweepRun:
        """Sets fields of one run; returns it. Raises OSError."""
        with self.alone():
            content = self.read()
            runs = tuple(replace(run, **values) if run.name == name else run for run in content.runs)
            self.write(replace(content, runs=runs))
        return next(run for run in runs if run.name == name)

    def has_begun(self, content: Content) -> bool:
        """Whether there is a run; a plan whose settings were refused may be replaced by another."""
        return any(run.state is State.FINISHED or self.run(run.name).config.exists() for run in content.runs)

    def manifest(self) -> Manifest | None:
        """The images that all runs train on; None until `agree_on` was called. Raises FastaeError."""
        return Manifest.read(self.images) if self.images.exists() else None

    def agree_on(self, images: Manifest) -> Manifest:
        """The images that the first process to ask has found. Raises FastaeError, OSError."""
        with self.alone():
            if not self.images.exists():
                images.write(self.images)
            return Manifest.read(self.images)

    def withdraw(self, kind: type[BaseException] | None, *rest: object) -> None:
        """At the end of a block that an error ends: leaves nothing if no run has begun."""
        with suppress(OSError):
            if kind and not (self.file.exists() and self.has_begun(self.read())):
                for file in (self.file, self.images, *self.path.glob(DRAFTS), *self.path.glob(".*lock")):
                    file.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        with FileLock(self.path / ".sweep.json.lock"):
            yield


@contextmanager
def open_sweep(config: SweepConfig, path: Path | None) -> Iterator[SweepFolder]:
    """The sweep in a folder, new or to be resumed, kept from others while the block runs.

    Default: runs/TIME-sweep. If an error ends the block before a run has begun, nothing is left.
    Raises FastaeError if another sweep, or something else, is in it, or it cannot be written.
    """
    wanted = Content(config.plan(), config.runs())
    with ExitStack() as held:
        place = path or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-sweep"
        try:
            place = held.enter_context(made_folder(place, new=path is None))
            folder = SweepFolder(place)
            require_sweep_or_nothing(folder)
            held.enter_context(locked(FileLock(place / ".lock"), place, "sweep"))
            require_sweep_or_nothing(folder)  # again: nothing else can come into it now
            found = folder.read() if folder.file.exists() else None
            held.push(folder.withdraw)
            if found and (found.plan == wanted.plan or folder.has_begun(found)):
                refuse_another(place, found.plan, wanted.plan)
            else:
                folder.images.unlink(missing_ok=True)
                folder.write(wanted)
        except OSError as error:
            raise FastaeError(f"--out {str(place)!r} cannot be used: {error.strerror or error}") from None
        yield folder


def require_sweep_or_nothing(folder: SweepFolder) -> None:
    """Raises FastaeError if something else is in it. Raises OSError."""
    visible = [entry for entry in folder.path.iterdir() if not entry.name.startswith(".")]
    if visible and not folder.file.exists():
        raise FastaeError(f"--out {str(folder.path)!r} is not empty and holds no sweep: name a new folder")


def refuse_another(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises FastaeError if the plans differ."""
    differing = [
        f"{flag(name)} {found.get(name)}, not {wanted.get(name)}"
        for name in dict.fromkeys([*wanted, *found])
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise FastaeError(
            f"{str(path)!r} holds a sweep with {', '.join(differing)}: "
            "give the same settings to resume it, or name another --out"
        )
