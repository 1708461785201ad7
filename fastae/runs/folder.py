"""A run's folder: config.json, images.json, metrics, TensorBoard events, checkpoints, samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import TrainConfig
from fastae.data.files.jpeg import FileFault
from fastae.data.files.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.runs import checkpoint, metrics
from fastae.runs.description import RunDescription
from fastae.utils.console import printable
from fastae.utils.environment import command
from fastae.utils.files import (
    hold_lock,
    made_folder,
    open_own,
    refuse_links,
    remove_drafts,
    require_new_folder,
    write_json,
)
from fastae.utils.json import read_json

RUNS = Path("runs")


@dataclass(frozen=True)
class Logged:
    """The last loss_index of each kind of row in metrics.csv."""

    loss_index: float | None = None
    held_out: float | None = None


class RunFolder:
    """The files in a run's folder, which `new_run` creates. A run has begun once it has a config.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / ".lock"
        self.config = path / "config.json"
        self.manifest_file = path / NAME
        self.metrics = path / metrics.NAME
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.weights = path / "model.safetensors"
        self.skipped = path / "skipped.txt"
        self.non_finite = path / "nan.txt"

    def sample(self, iteration: int) -> Path:
        return self.samples / f"{iteration:07d}.png"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out of the folder.

        Raises FastaeError if a run is in progress in it, or if something in it is a link.
        """
        with hold_lock(FileLock(self.lock_file), self.path, "run"):
            refuse_links(self.path)
            refuse_links(self.samples)
            refuse_links(self.checkpoints, but=checkpoint.LAST)
            yield

    def begin(self, description: RunDescription, manifest: Manifest, skipped: Iterable[FileFault]) -> None:
        """Writes what a run is and, before its first checkpoint, which images it begins with; under the lock.

        Raises FastaeError; a run that was new has then not begun.
        """
        is_new = not self.config.exists()
        try:
            # First: a run that has a config.json, but no such folder, has lost it.
            self.checkpoints.mkdir(exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            write_json(self.config, description.as_dict())
            if checkpoint.latest(self.checkpoints) is None:
                checkpoint.remove_unfinished(self.checkpoints)
                manifest.write(self.manifest_file)
            self.note_skipped(skipped)
        except OSError as error:
            if is_new:
                self._remove()
            raise FastaeError(f"cannot write the run folder {str(self.path)!r}: {error}") from None

    def _remove(self) -> None:
        """Removes what `begin` writes."""
        for file in (self.config, self.manifest_file, self.skipped):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.samples):
            with suppress(OSError):
                folder.rmdir()

    def settings(self) -> TrainConfig:
        """The settings in config.json. Raises FastaeError if it is missing or invalid."""
        return self.describe().config

    def describe(self) -> RunDescription:
        """What config.json says. Raises FastaeError as `settings`."""
        require_run(self.path)
        try:
            return RunDescription.from_dict(read_json(self.config, dict[str, Any]), str(self.config))
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.config)!r} cannot be read: {error}") from None

    def manifest(self, description: RunDescription | None = None) -> Manifest:
        """The images that it began with. Raises FastaeError if images.json is missing, damaged or edited.

        description: what a checkpoint says of the run; by default what config.json says.
        """
        manifest = Manifest.read(self.manifest_file)
        fingerprint = (description or self.describe()).data.fingerprint
        if fingerprint not in (None, manifest.fingerprint):
            where = str(self.manifest_file)
            raise FastaeError(f"{where!r} lists other images than the run began with: restore it")
        return manifest

    def note_skipped(self, bad: Iterable[FileFault]) -> None:
        """Lists files that cannot be trained on in skipped.txt, each once. Raises OSError."""
        lines = [f"{each.fault.value}\t{printable(each.path)}\n".encode() for each in bad]
        if lines and self.path.is_dir():
            with open_own(self.skipped, "a") as file:  # several ranks may append
                with self.skipped.open("rb") as written:
                    noted = set(written)
                file.writelines(line for line in dict.fromkeys(lines) if line not in noted)

    def note_non_finite(self, iteration: int, images: Iterable[str]) -> None:
        """Lists the images of an iteration whose loss is not finite in nan.txt. Raises OSError."""
        with open_own(self.non_finite, "a") as file:
            file.writelines(f"{iteration}\t{printable(path)}\n".encode() for path in images)

    def logged(self, iteration: int) -> Logged:
        """What it has logged up to an iteration; nothing if there is no metrics.csv that can be read."""
        try:
            rows = metrics.read_metrics(self.metrics).up_to(iteration)
        except (OSError, ValueError):
            return Logged()
        train, held_out = (each.values["loss_index"] for each in (rows.train, rows.held_out))
        return Logged(
            float(train[-1]) if len(train) else None,
            float(held_out[-1]) if len(held_out) else None,
        )

    def lost_progress(self, config: TrainConfig) -> str | None:
        """What shows that a run without a checkpoint has had one; None if it may begin again.

        Raises FastaeError if its checkpoints cannot be listed.
        """
        if not self.checkpoints.is_dir():
            return f"{str(self.checkpoints)!r} is missing"
        if digests := checkpoint.without_checkpoint(self.checkpoints):
            return f"{digests[-1].stem} is missing, and its digest is not"
        if self.weights.exists():
            return f"{self.weights.name} holds the weights of a finished run"
        with suppress(OSError, ValueError):
            rows = metrics.read_metrics(self.metrics)
            last = int(rows.train.iterations.max(initial=0))
            seconds = float(rows.windows(config.batch_size)[1].sum())
            # The second is not begun until the first is on the disk.
            if last > 2 * (config.checkpoint_every or math.inf) or seconds > 120 * config.checkpoint_minutes:
                return f"metrics.csv reaches iteration {last:,}"
        return None

    def resume_hint(self) -> str:
        """What is kept of a run that ended early, and the command that resumes it."""
        iteration = None
        with suppress(FastaeError):  # the folder may be gone
            iteration = checkpoint.latest(self.checkpoints)
        kept = "nothing was saved yet" if iteration is None else f"iteration {iteration:,} is saved"
        return f"{kept}; resume with: {command('fastae')} train --resume {self.path}"

    def remove_drafts(self) -> None:
        """Removes what a process that was killed has not finished writing; under the lock."""
        for folder in (self.path, self.checkpoints, self.samples):
            remove_drafts(folder)


def require_run(path: Path) -> None:
    """Raises FastaeError, naming the runs in it if there are some, unless `path` is the folder of a run."""
    if (path / "config.json").exists():
        return
    runs = sorted(found.parent.name for found in path.glob("*/config.json"))
    if runs:
        names = ", ".join(runs[:6]) + (", ..." if len(runs) > 6 else "")
        raise FastaeError(f"{str(path)!r} holds several runs, and is none itself: name one of them ({names})")
    raise FastaeError(f"{str(path)!r} is not the folder of a run: no config.json")


def require_unused(path: Path, option: str) -> None:
    """Raises FastaeError, naming `option`, unless a run can begin in `path`: it is new, or holds hidden files
    alone, such as the lock of a process that was killed."""
    with suppress(OSError):
        if all(entry.name.startswith(".") for entry in path.iterdir()):
            return
    require_new_folder(path, option)


@contextmanager
def new_run(path: Path | None, loss: str, option: str = "--out") -> Iterator[RunFolder]:
    """A new run's folder, locked: `path`, or runs/TIME-LOSS. It is removed again if no run begins.

    Raises FastaeError, naming `option`, if the folder is in use or cannot be created.
    """
    with held_folder(path, loss, "run", "config.json", lambda place: require_unused(place, option)) as place:
        yield RunFolder(place)


@contextmanager
def held_folder(
    path: Path | None, name: str, what: str, begun: str, require: Callable[[Path], None]
) -> Iterator[Path]:
    """The folder `path`, or a new one runs/TIME-NAME, created if need be and locked for a `what`.

    It is removed again if the block ends without a file `begun` in it. require: raises FastaeError unless the
    folder may be used; is called before anything is created, and under the lock. Raises FastaeError.
    """
    place = path or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    with ExitStack() as held:
        try:
            if path:
                require(path)
            place = held.enter_context(made_folder(place, new=path is None))
            held.enter_context(hold_lock(FileLock(place / ".lock"), place, what))
            require(place)  # another may have begun and ended in between
        except OSError as error:
            reason = error.strerror or error
            raise FastaeError(f"cannot write the {what} folder {str(place)!r}: {reason}") from None
        try:
            yield place
        finally:
            if not (place / begun).exists():
                with suppress(OSError):
                    for lock in place.glob(".*lock"):
                        lock.unlink()
