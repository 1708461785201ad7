"""A run's folder: config.json, images.json, TensorBoard events, checkpoints, samples, the GPU report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastae.config import TrainConfig
from fastae.console import printable
from fastae.data.check import Finding
from fastae.data.listing import NAME, Listing
from fastae.errors import FastaeError
from fastae.files import require_file, require_new_folder, take_lock, write_json
from fastae.parsing import nested, read_json

RUNS = Path("runs")


class RunFolder:
    """The places in a run's folder. `RunFolder.create` makes one; the path may be anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The kernel's lock, which ends with its process: no stale file keeps anybody out.
        self._lock = FileLock(path / ".lock")
        self._noted: set[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def images(self) -> Path:
        return self.path / NAME

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def sample(self, iteration: int) -> Path:
        return self.path / "samples" / f"{iteration:07d}.png"

    def latest_sample(self) -> Path:
        return max(self.sample(0).parent.glob("*.png"))

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.txt"

    @property
    def non_finite(self) -> Path:
        return self.path / "nan.txt"

    def create(self, description: dict[str, Any], images: Listing, skipped: Iterable[Finding] = ()) -> None:
        """Makes the folders, locks them, and writes down what the run is and which images it begins with.

        config.json comes last: a folder that has it has all the rest. Raises FastaeError.
        """
        try:
            self.checkpoints.mkdir(parents=True)
            self.sample(0).parent.mkdir()
            self.lock()
            images.write(self.images)
            self.note_skipped(skipped)
            self.redescribe(description)
        except OSError as error:
            raise FastaeError(f"cannot write the run folder {str(self.path)!r}: {error}") from None

    def redescribe(self, description: dict[str, Any]) -> None:
        """Writes config.json anew. Raises OSError."""
        write_json(self.config, description)

    def lock(self) -> None:
        """Keeps other runs out of the folder until `unlock`, or until this process has died.

        Raises FastaeError where another run is at work in it.
        """
        take_lock(self._lock, self.path, "run")

    def unlock(self) -> None:
        self._lock.release()

    def remove_drafts(self) -> None:
        """Removes what a process that was killed while it wrote has left; call it under the lock."""
        for draft in (*self.path.glob(".*.partial"), *self.path.glob("*/.*.partial")):
            draft.unlink(missing_ok=True)

    def settings(self) -> TrainConfig:
        """What config.json says. Raises FastaeError where this is no run's folder, or that is damaged."""
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

    def began_with(self) -> Listing:
        """The images it began with. Raises FastaeError where images.json is missing, damaged or another's."""
        images = Listing.read(self.images)
        if nested(self.describe(), "data", "fingerprint") not in (None, images.fingerprint):
            raise FastaeError(f"{str(self.images)!r} lists other images than the run began with: restore it")
        return images

    def note_skipped(self, bad: Iterable[Finding]) -> None:
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


def _line(finding: Finding) -> bytes:
    return f"{finding.fault.value}\t{printable(finding.path)}\n".encode()


def choose_run_folder(config: TrainConfig) -> RunFolder:
    """--out, or runs/TIME-LOSS; not made yet, so that a run that fails to start leaves nothing.

    Raises FastaeError where the folder is in use or could not be written.
    """
    path = Path(config.out) if config.out else _unused(time.strftime("%Y%m%d-%H%M%S"), config.loss)
    require_new_folder(path, "--out")
    return RunFolder(path)


def _unused(moment: str, loss: str) -> Path:
    path, number = RUNS / f"{moment}-{loss}", 2
    while path.exists():
        path, number = RUNS / f"{moment}-{loss}-{number}", number + 1
    return path
