"""A run's folder: config.json, images.json, TensorBoard events, checkpoints, samples, the GPU report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
DRAFTS = ".*.partial"
"""What `atomic_write` names a file that is not whole yet."""


class RunFolder:
    """The places in a run's folder, which may be anywhere. `new_run` makes one.

    new: made for a run that begins here; otherwise config.json says what the run is.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        self.new = new
        self._noted: set[bytes] | None = None

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def images(self) -> Path:
        return self.path / NAME

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def sample(self, iteration: int) -> Path:
        return self.samples / f"{iteration:07d}.png"

    def latest_sample(self) -> Path:
        return max(self.samples.glob("*.png"))

    @property
    def metrics(self) -> Path:
        return self.path / metrics.NAME

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.txt"

    @property
    def non_finite(self) -> Path:
        return self.path / "nan.txt"

    def size(self) -> int:
        """Bytes on disk."""
        files = (path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_size for path in files)

    def resume_hint(self) -> str:
        """What is kept of a run that ended early, and how to resume it, in words."""
        iteration = checkpoint.latest(self.checkpoints)
        kept = "nothing was saved yet" if iteration is None else f"iteration {iteration:,} is saved"
        return f"{kept}; resume with: {command('fastae')} train --resume {self.path}"

    def begin(
        self, description: Mapping[str, Any], images: Manifest, skipped: Iterable[FileFault] = ()
    ) -> None:
        """Writes down, under the lock, what a run is, and of a new one which images it begins with.

        config.json comes last: a folder that has it has all the rest. Raises FastaeError.
        """
        try:
            if self.new:
                self.checkpoints.mkdir()
                self.samples.mkdir()
                images.write(self.images)
            self.note_skipped(skipped)
            write_json(self.config, dict(description))
        except OSError as error:
            raise FastaeError(f"cannot write the run folder {str(self.path)!r}: {error}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder. Raises FastaeError if one is at work in it."""
        with locked(FileLock(self.lock_file), self.path, "run"):
            yield

    def require_unused(self, option: str) -> None:
        """Raises FastaeError, naming `option`, unless a new run can begin in the folder."""
        if not self.holds_leftovers():
            require_new_folder(self.path, option)

    def holds_leftovers(self) -> bool:
        """Whether all that is in it was left by a run that was killed before it began."""
        try:
            entries = list(self.path.iterdir())
            return self.lock_file in entries and all(map(self._is_leftover, entries))
        except OSError:
            return False

    def _is_leftover(self, entry: Path) -> bool:
        if entry in (self.checkpoints, self.samples):
            return not any(entry.iterdir())
        return entry in (self.lock_file, self.images, self.skipped) or entry.match(DRAFTS)

    def remove_leftovers(self) -> None:
        """Removes, under the lock, what a run that did not begin has written. Raises OSError."""
        self.remove_drafts()
        for folder in (self.checkpoints, self.samples):
            if folder.exists():
                folder.rmdir()
        for file in (self.images, self.skipped):
            file.unlink(missing_ok=True)

    def remove_drafts(self) -> None:
        """Removes what a process that was killed while it wrote has left; call it under the lock."""
        for draft in (*self.path.glob(DRAFTS), *self.path.glob(f"*/{DRAFTS}")):
            draft.unlink(missing_ok=True)

    def settings(self) -> TrainConfig:
        """What config.json says. Raises FastaeError if this is no run's folder, or that is damaged."""
        return TrainConfig.from_dict(self.describe().get("config"), str(self.config))

    def describe(self) -> dict[str, Any]:
        """config.json: config, data, loader, device, step, environment. Raises FastaeError as `settings`."""
        try:
            written = read_json(self.config)
        except (FileNotFoundError, NotADirectoryError):
            raise FastaeError(f"{str(self.path)!r} is not the folder of a run: no config.json") from None
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.config)!r} cannot be read: {error}") from None
        if not isinstance(written, dict):
            raise FastaeError(f"{str(self.config)!r} is not what a run writes")
        return written

    def manifest(self) -> Manifest:
        """The images it began with. Raises FastaeError if images.json is missing, damaged or another's."""
        images = Manifest.read(self.images)
        if nested(self.describe(), "data", "fingerprint") not in (None, images.fingerprint):
            raise FastaeError(f"{str(self.images)!r} lists other images than the run began with: restore it")
        return images

    def note_non_finite(self, iteration: int, images: Iterable[str]) -> Path:
        """Adds the images of an iteration whose loss is not finite to the list of them. Raises OSError."""
        require_file(self.non_finite)
        with self.non_finite.open("a") as file:
            file.writelines(f"{iteration}\t{printable(path)}\n" for path in images)
        return self.non_finite

    def note_skipped(self, bad: Iterable[FileFault]) -> None:
        """Adds files that cannot be trained on to the list of them, each once. Raises OSError."""
        lines = [_line(finding) for finding in bad]
        if not lines or not self.path.is_dir():
            return
        require_file(self.skipped)
        with self.skipped.open("a+b") as file:
            if self._noted is None:
                file.seek(0)
                self._noted = set(file)
            fresh = [line for line in dict.fromkeys(lines) if line not in self._noted]
            file.writelines(fresh)
            self._noted.update(fresh)


def _line(finding: FileFault) -> bytes:
    return f"{finding.fault.value}\t{printable(finding.path)}\n".encode()


@contextmanager
def new_run(path: Path | None, loss: str, option: str = "--out") -> Iterator[RunFolder]:
    """A new run's folder, made and locked: `path`, or runs/TIME-LOSS. It is removed where no run has begun.

    Raises FastaeError, naming `option`, where the folder is in use or cannot be made.
    """
    if path:
        RunFolder(path).require_unused(option)
    with ExitStack() as held:
        place = path or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{loss}"
        try:
            run = RunFolder(held.enter_context(made_folder(place, new=path is None)), new=True)
        except OSError as error:
            raise FastaeError(f"cannot write the run folder {str(place)!r}: {error}") from None
        held.enter_context(run.locked())
        run.require_unused(option)  # again, under the lock: a run may have begun and ended in between
        held.callback(_withdraw, run)
        run.remove_leftovers()
        yield run


def _withdraw(run: RunFolder) -> None:
    """Leaves nothing, not even the lock, where no run has begun."""
    if not run.config.exists():
        with suppress(OSError):
            run.remove_leftovers()
            run.lock_file.unlink()
