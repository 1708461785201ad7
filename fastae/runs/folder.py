"""A run's folder: config.json, images.json, metrics.csv, TensorBoard's events, checkpoints, sample sheets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fastae.config import TrainConfig
from fastae.data.files.faults import FileFault
from fastae.data.files.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.runs import checkpoint, metrics
from fastae.runs.description import RunDescription
from fastae.utils.console import printable
from fastae.utils.environment import command
from fastae.utils.files import (
    hold_lock,
    listed,
    made_folder,
    mode_at,
    open_own,
    refuse_links,
    remove_drafts,
    require_new_folder,
    write_json,
)
from fastae.utils.json import read_json
from fastae.utils.paths import shell_word

RUNS = Path("runs")
"""The folder in which a run or a sweep is made if the user names no other."""


class RunFolder:
    """The paths in a run's folder, and what is read from and written to them.

    `new_run` creates the folder. A run has begun once its folder holds a config.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.manifest_file = path / NAME
        self.metrics_file = path / metrics.NAME
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.weights_file = path / "model.safetensors"
        self.skipped_file = path / "skipped.txt"
        self.non_finite_file = path / "nan.txt"

    def sample(self, iteration: int) -> Path:
        """Returns the path of the sample sheet of an iteration."""
        return self.samples / f"{iteration:07d}.png"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder's lock while the block runs.

        Raises FastaeError if another process holds it, or if the folder contains a link.
        """
        with hold_lock(self.path, "run"):
            refuse_links(self.path)
            refuse_links(self.samples)
            refuse_links(self.checkpoints)
            yield

    def begin(self, description: RunDescription, manifest: Manifest, skipped: Iterable[FileFault]) -> None:
        """Writes config.json, skipped.txt and, if the run has no checkpoint yet, images.json.

        The caller holds the lock.

        Args:
            description: what the run is made with.
            manifest: the images that the run begins with.
            skipped: the files that the run does not train on.

        Raises:
            FastaeError: a file cannot be written. A run that was new has then not begun.
        """
        is_new = not mode_at(self.config_file)
        try:
            self.remove_drafts()
            # Before config.json: a run that has one, but no folder of checkpoints, has lost its checkpoints.
            self.checkpoints.mkdir(exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            write_json(self.config_file, description.as_dict())
            if checkpoint.latest(self.checkpoints) is None:
                manifest.write(self.manifest_file)
            self.note_skipped(skipped)
        except (OSError, FastaeError) as error:
            if is_new:
                self._remove()
            raise FastaeError(f"cannot write the run folder {str(self.path)!r}: {error}") from None

    def _remove(self) -> None:
        """Removes what `begin` has written."""
        for file in (self.config_file, self.manifest_file, self.skipped_file):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.samples):
            with suppress(OSError):
                folder.rmdir()

    def read_config(self) -> TrainConfig:
        """Returns the settings in config.json. Raises FastaeError if it is missing or invalid."""
        return self.read_description().config

    def read_description(self) -> RunDescription:
        """Returns the description in config.json. Raises FastaeError if it is missing or invalid."""
        require_run(self.path)
        try:
            return RunDescription.from_dict(
                read_json(self.config_file, dict[str, Any]), str(self.config_file)
            )
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.config_file)!r} cannot be read: {error}") from None

    def read_manifest(self, description: RunDescription | None = None) -> Manifest:
        """Returns the images that the run began with.

        Args:
            description: the description of the run in a checkpoint; by default that in config.json.

        Raises:
            FastaeError: images.json is missing, is damaged, or lists other images than the description.
        """
        manifest = Manifest.read(self.manifest_file)
        fingerprint = (description or self.read_description()).data.fingerprint
        if fingerprint not in (None, manifest.fingerprint):
            where = str(self.manifest_file)
            raise FastaeError(f"{where!r} lists other images than the run began with: restore it")
        return manifest

    def note_skipped(self, bad: Iterable[FileFault]) -> None:
        """Adds the files that training skips to skipped.txt, unless they are listed there. Raises OSError."""
        lines = [f"{each.fault.value}\t{printable(each.path)}\n".encode() for each in bad]
        if lines and self.path.is_dir():
            with open_own(self.skipped_file, "a") as file:  # several ranks may append
                with self.skipped_file.open("rb") as written:
                    noted = set(written)
                file.writelines(line for line in dict.fromkeys(lines) if line not in noted)

    def note_non_finite(self, iteration: int, images: Iterable[str]) -> None:
        """Adds the images of an iteration to nan.txt, because its loss is not finite. Raises OSError."""
        with open_own(self.non_finite_file, "a") as file:
            file.writelines(f"{iteration}\t{printable(path)}\n".encode() for path in images)

    def held_out_error(self, iteration: int) -> float | None:
        """Returns the error of the held-out images, MSE x 1e7, at the last evaluation up to an iteration.

        Returns None if there is none, or if metrics.csv cannot be read.
        """
        try:
            held_out = metrics.read_metrics(self.metrics_file).held_out
        except (OSError, ValueError):
            return None
        errors = held_out.values["loss_index"][held_out.iterations <= iteration]
        return float(errors[-1]) if len(errors) else None

    def lost_progress(self) -> str | None:
        """Returns, in words, what shows that a run without a checkpoint once had one.

        Returns None if nothing shows that, so that the run may begin again. Raises FastaeError if its
        checkpoints cannot be listed, or if config.json is not valid.
        """
        if not mode_at(self.checkpoints):
            return f"{str(self.checkpoints)!r} is missing"
        if mode_at(self.weights_file):
            return f"{self.weights_file.name} holds the weights of a finished run"
        if other := [path.name for path in listed(self.checkpoints) if not path.name.startswith(".")]:
            name = printable(other[0])
            return f"{str(self.checkpoints)!r} holds {name}, which is no checkpoint of this version"
        with suppress(OSError, ValueError):
            config, logged = self.read_config(), metrics.read_metrics(self.metrics_file)
            last, seconds = logged.iteration, logged.seconds(config.batch_size)
            # A run begins its second checkpoint only when the first one is on the disk.
            if last > 2 * (config.checkpoint_every or math.inf) or seconds > 120 * config.checkpoint_minutes:
                return f"metrics.csv reaches iteration {last:,}"
        return None

    def saved(self) -> str:
        """Returns, in words, what is saved of a run that ended early."""
        iteration = None
        with suppress(FastaeError, OSError):  # the folder may be gone
            iteration = checkpoint.latest(self.checkpoints)
        return "nothing was saved yet" if iteration is None else f"iteration {iteration:,} is saved"

    def resume_hint(self) -> str:
        """Returns, in words, what is saved of a run that ended early, and the command that continues it."""
        with suppress(OSError):
            if not mode_at(self.config_file):
                return "nothing was begun: give the same command again"
        return f"{self.saved()}; resume with: {self.resume_command}"

    @property
    def resume_command(self) -> str:
        return f"{command('fastae')} train --resume {shell_word(self.path)}"

    def remove_drafts(self) -> None:
        """Removes the files that a killed process has not finished writing. The caller holds the lock."""
        for folder in (self.path, self.checkpoints, self.samples):
            remove_drafts(folder)


def require_run(path: Path) -> None:
    """Raises FastaeError, naming any runs that are inside, unless `path` is the folder of a run."""
    if mode_at(path / "config.json"):
        return
    runs = sorted(found.parent.name for found in path.glob("*/config.json"))
    if runs:
        names = ", ".join(runs[:6]) + (", ..." if len(runs) > 6 else "")
        raise FastaeError(f"{str(path)!r} is a folder of runs: name one of them ({names})")
    raise FastaeError(f"{str(path)!r} is not a run folder: it has no config.json")


def require_unused(path: Path, option: str) -> None:
    """Raises FastaeError, naming `option`, unless a run can begin in `path`.

    The folder must be new, or contain only what a process leaves that was killed before the run began: hidden
    files, such as its lock and drafts, and folders of these.
    """
    with suppress(OSError):
        if all(_is_left_over(entry) for entry in path.iterdir()):
            return
    require_new_folder(path, option)


def _is_left_over(entry: Path) -> bool:
    """Returns whether an entry of a folder is hidden, or a folder of hidden files."""
    if entry.name.startswith("."):
        return True
    return entry.is_dir() and not entry.is_symlink() and all(e.name.startswith(".") for e in entry.iterdir())


@contextmanager
def new_run(path: Path | None, loss: str, option: str = "--out") -> Iterator[RunFolder]:
    """Yields the locked folder of a new run: `path`, or runs/TIME-LOSS. It is removed if no run begins.

    Raises FastaeError, naming `option`, if the folder is in use or cannot be created.
    """
    require = partial(require_unused, option=option)
    with locked_folder(path, name=loss, kind="run", begun="config.json", require=require) as folder:
        yield RunFolder(folder)


@contextmanager
def locked_folder(
    path: Path | None, *, name: str, kind: str, begun: str, require: Callable[[Path], None]
) -> Iterator[Path]:
    """Yields a locked folder for a run or a sweep. It is made if missing, and removed if nothing begins.

    Args:
        path: the folder; None for a new one, runs/TIME-NAME.
        name: the end of a new folder's name.
        kind: what the folder is for, 'run' or 'sweep', for messages.
        begun: the name of the file that shows that the run or sweep has begun.
        require: raises FastaeError unless the folder may be used. It is called before anything is made, and
            again when the lock is held.

    Raises:
        FastaeError: the folder may not be used, is locked by another process, or cannot be made.
    """
    folder = path or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    with ExitStack() as stack:
        try:
            if path:
                require(path)
            folder = stack.enter_context(made_folder(folder, new=path is None))
            stack.enter_context(hold_lock(folder, kind))
            require(folder)  # another process may have begun and ended one meanwhile
        except OSError as error:
            reason = error.strerror or error
            raise FastaeError(f"cannot write the {kind} folder {str(folder)!r}: {reason}") from None
        try:
            yield folder
        finally:
            if not (folder / begun).exists():
                with suppress(OSError):
                    for lock in folder.glob(".*lock"):
                        lock.unlink()
