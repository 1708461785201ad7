"""A run's folder: config.json, images.json, metrics, TensorBoard events, checkpoints, samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import TrainConfig
from fastae.data.jpeg import FileFault
from fastae.data.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.runs import checkpoint, metrics
from fastae.utils.console import printable
from fastae.utils.environment import command
from fastae.utils.files import locked, made_folder, require_file, require_new_folder, write_json
from fastae.utils.json import nested, read_json

RUNS = Path("runs")


@dataclass(frozen=True)
class Logged:
    """seconds: of training, in all sessions; its share, if the run took turns with others.

    loss_index, held_out: the last loss_index of each kind.
    """

    seconds: float = 0.0
    loss_index: float | None = None
    held_out: float | None = None


class RunFolder:
    """The files in a run's folder, which `new_run` creates. A run has begun once it has a config.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / ".lock"
        self.config = path / "config.json"
        self.images = path / NAME
        self.metrics = path / metrics.NAME
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.weights = path / "model.safetensors"
        self.skipped = path / "skipped.txt"
        self.non_finite = path / "nan.txt"

    def sample(self, iteration: int) -> Path:
        return self.samples / f"{iteration:07d}.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder. Raises FastaeError if a run is in progress in it."""
        with locked(FileLock(self.lock_file), self.path, "run"):
            yield

    def begin(self, description: Mapping[str, Any], images: Manifest, skipped: Iterable[FileFault]) -> None:
        """Writes what a run is and, before its first checkpoint, which images it begins with; under the lock.

        Raises FastaeError; a run that was new has then not begun.
        """
        is_new = not self.config.exists()
        try:
            write_json(self.config, dict(description))
            if checkpoint.latest(self.checkpoints) is None:
                self.checkpoints.mkdir(exist_ok=True)
                self.samples.mkdir(exist_ok=True)
                images.write(self.images)
            self.note_skipped(skipped)
        except OSError as error:
            if is_new:
                self._remove()
            raise FastaeError(f"cannot write the run folder {str(self.path)!r}: {error}") from None

    def _remove(self) -> None:
        """Removes what `begin` writes."""
        for file in (self.config, self.images, self.skipped):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.samples):
            with suppress(OSError):
                folder.rmdir()

    def settings(self) -> TrainConfig:
        """The settings in config.json. Raises FastaeError if it is missing or invalid."""
        return TrainConfig.from_dict(self.describe().get("config"), str(self.config))

    def describe(self) -> dict[str, Any]:
        """config.json: config, data, loader, device, step, environment. Raises FastaeError as `settings`."""
        try:
            return read_json(self.config, dict[str, Any])
        except (FileNotFoundError, NotADirectoryError):
            raise FastaeError(f"{str(self.path)!r} is not the folder of a run: no config.json") from None
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.config)!r} cannot be read: {error}") from None

    def manifest(self) -> Manifest:
        """The images that it began with. Raises FastaeError if images.json is missing, damaged or edited."""
        images = Manifest.read(self.images)
        if nested(self.describe(), "data", "fingerprint") not in (None, images.fingerprint):
            raise FastaeError(f"{str(self.images)!r} lists other images than the run began with: restore it")
        return images

    def note_skipped(self, bad: Iterable[FileFault]) -> None:
        """Lists files that cannot be trained on in skipped.txt, each once. Raises OSError."""
        lines = [f"{each.fault.value}\t{printable(each.path)}\n".encode() for each in bad]
        if lines and self.path.is_dir():
            require_file(self.skipped)
            with self.skipped.open("a+b") as file:  # several ranks may append
                file.seek(0)
                noted = set(file)
                file.writelines(line for line in dict.fromkeys(lines) if line not in noted)

    def note_non_finite(self, iteration: int, images: Iterable[str]) -> None:
        """Lists the images of an iteration whose loss is not finite in nan.txt. Raises OSError."""
        require_file(self.non_finite)
        with self.non_finite.open("a") as file:
            file.writelines(f"{iteration}\t{printable(path)}\n" for path in images)

    def logged(self, iteration: int, batch_size: int) -> Logged:
        """What it has logged up to an iteration; nothing if there is no metrics.csv that can be read."""
        try:
            rows = metrics.read_metrics(self.metrics).up_to(iteration)
            turns = self.describe().get("at_once")
        except (OSError, ValueError, FastaeError):
            return Logged()
        train, held_out = (each.values["loss_index"] for each in (rows.train, rows.held_out))
        return Logged(
            float(rows.windows(batch_size)[1].sum()) / (turns if isinstance(turns, int) and turns > 1 else 1),
            float(train[-1]) if len(train) else None,
            float(held_out[-1]) if len(held_out) else None,
        )

    def resume_hint(self) -> str:
        """What is kept of a run that ended early, and the command that resumes it."""
        iteration = checkpoint.latest(self.checkpoints)
        kept = "nothing was saved yet" if iteration is None else f"iteration {iteration:,} is saved"
        return f"{kept}; resume with: {command('fastae')} train --resume {self.path}"

    def remove_drafts(self) -> None:
        """Removes what a process that was killed has not finished writing; under the lock."""
        for draft in self.path.glob("**/.*.partial"):
            draft.unlink(missing_ok=True)


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
            held.enter_context(locked(FileLock(place / ".lock"), place, what))
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
