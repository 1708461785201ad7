"""What a sweep will run and how far it is: `sweep.json`, written whole at each change.

Several processes may work on one sweep, so a change is read, made and written under a lock.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import Range, TrainConfig, flag, require_in
from fastae.data.manifest import NAME, Listing
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.runs.folder import DRAFTS, RUNS, RunFolder
from fastae.utils.files import locked, made_folder, write_json
from fastae.utils.parsing import parse, read_json

PLAN = "sweep.json"

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"

ARTICLE_SECONDS = 30 * 3600
ARTICLE_IMAGES = 6 * 100_000 * 64
"""Six runs of 100,000 iterations of 64 images took the article 30 hours."""


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
        require_in(Range(1, 1000), self.repeats, "--repeats")
        dataclasses.replace(self.train, seed=max(entry.seed for entry in self.runs()))  # which it may not be

    def runs(self) -> list[Entry]:
        """One run after the other: every loss, then every loss again with the next seeds."""
        entries = []
        for repeat in range(self.repeats):
            for loss in (name for name in LOSSES if name in self.losses):
                offset = repeat if self.same_init else len(LOSSES) * repeat + list(LOSSES).index(loss)
                name = loss if repeat == 0 else f"{loss}-{repeat + 1}"
                entries.append(Entry(name, loss, self.train.seed + offset))
        return entries

    def describe(self) -> dict[str, Any]:
        """What makes it this sweep and no other."""
        settings = {
            entry.name: getattr(self.train, entry.name)
            for entry in dataclasses.fields(TrainConfig)
            if not entry.metadata["free"] and entry.name not in ("loss", "out")
        }
        losses = [name for name in LOSSES if name in self.losses]
        own = {"losses": losses, "repeats": self.repeats, "same_init": self.same_init}
        return {"iterations": self.train.iterations, "minutes": self.train.minutes, **settings, **own}


@dataclass
class Entry:
    """One run. `seconds`: of training, over all sessions. Figures are the last that were logged."""

    name: str
    loss: str
    seed: int
    state: str = WAITING
    iteration: int = 0
    loss_index: float | None = None
    held_out: float | None = None
    images_per_second: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass
class Sweep:
    """The file in `folder`. Its entries are this process's view: `change` brings it up to date."""

    folder: Path
    plan: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / PLAN

    @property
    def has_begun(self) -> bool:
        """Whether there is a run; a plan whose settings were refused may be replaced by another."""
        return bool(self.finished) or any(
            RunFolder(self.folder / entry.name).config.exists() for entry in self.entries
        )

    @property
    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == FINISHED]

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == FAILED]

    @property
    def images(self) -> Path:
        return self.folder / NAME

    def began_with(self) -> Listing | None:
        """The images that all runs train on; None until `agree_on` was called. Raises FastaeError."""
        return Listing.read(self.images) if self.images.exists() else None

    def agree_on(self, images: Listing) -> Listing:
        """The images that the first process to ask has found. Raises FastaeError, OSError."""
        with self._alone():
            if not self.images.exists():
                images.write(self.images)
            return Listing.read(self.images)

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def change(self, name: str, **values: Any) -> Entry:
        """Sets fields of one run, in the file too. Raises OSError."""
        with self._alone():
            self.refresh()
            entry = self.entry(name)
            for field_name, value in values.items():
                setattr(entry, field_name, value)
            self.write()
        return entry

    def refresh(self) -> None:
        """Reads what other processes have written."""
        self.entries = read(self.folder).entries

    def write(self) -> None:
        content = {"plan": self.plan, "runs": [dataclasses.asdict(entry) for entry in self.entries]}
        write_json(self.path, content)

    def withdraw(self, kind: type[BaseException] | None, *rest: object) -> None:
        """At the end of a block that an error ends: leaves nothing where no run has begun."""
        with suppress(OSError):
            if kind and not (self.path.exists() and read(self.folder).has_begun):
                for file in (self.path, self.images, *self.folder.glob(DRAFTS), *self.folder.glob(".*lock")):
                    file.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with FileLock(self.folder / ".sweep.json.lock"):
            yield


@contextmanager
def open_sweep(config: SweepConfig, folder: Path | None) -> Iterator[Sweep]:
    """The sweep in `folder`, begun or gone on with, kept from others while the block runs.

    Default: runs/TIME-sweep. Where an error ends the block before a run has begun, nothing is left.
    Raises FastaeError where another sweep, or something else, is in it, or it cannot be written.
    """
    with ExitStack() as held:
        place = folder or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-sweep"
        try:
            place = held.enter_context(made_folder(place, new=folder is None))
            require_sweep_or_nothing(place)
            held.enter_context(locked(FileLock(place / ".lock"), place, "sweep"))
            require_sweep_or_nothing(place)  # again: nothing else can come into it now
            sweep = Sweep(place, config.describe(), config.runs())
            found = read(place) if sweep.path.exists() else None
            held.push(sweep.withdraw)
            if found and (found.plan == sweep.plan or found.has_begun):
                refuse_another(found, sweep)
                sweep = found
            else:
                sweep.images.unlink(missing_ok=True)
                sweep.write()
        except OSError as error:
            raise FastaeError(f"--out {str(place)!r} cannot be used: {error.strerror or error}") from None
        yield sweep


def require_sweep_or_nothing(folder: Path) -> None:
    """Raises FastaeError where something else is in it."""
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if visible and not (folder / PLAN).exists():
        raise FastaeError(f"--out {str(folder)!r} is not empty and holds no sweep: name a new folder")


def read(folder: Path) -> Sweep:
    """Raises FastaeError where sweep.json is not what `Sweep.write` wrote."""
    path = folder / PLAN
    try:
        content = read_json(path)
        entries = parse(list[Entry], content["runs"])
        plan = dict(content["plan"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FastaeError(f"{str(path)!r} cannot be read as a sweep: {error}") from None
    for entry in entries:
        # A run's folder has its name, and is removed where the run had not begun: no other folder is.
        if entry.loss not in LOSSES or not re.fullmatch(rf"{entry.loss}(-[0-9]+)?", entry.name):
            raise FastaeError(f"{str(path)!r} holds a run {entry.name!r:.60}, which no sweep does")
    return Sweep(folder, plan, entries)


def refuse_another(found: Sweep, wanted: Sweep) -> None:
    names = [*wanted.plan, *(name for name in found.plan if name not in wanted.plan)]
    differing = [
        f"{flag(name)} {found.plan.get(name)}, not {wanted.plan.get(name)}"
        for name in names
        if found.plan.get(name) != wanted.plan.get(name)
    ]
    if differing:
        raise FastaeError(
            f"{str(found.folder)!r} holds a sweep with {', '.join(differing)}: "
            "give the same settings to go on with it, or name another --out"
        )


def article_seconds(images: float) -> float:
    """What the article needed for so many images."""
    return ARTICLE_SECONDS * images / ARTICLE_IMAGES
