"""A sweep's folder: sweep.json with the plan, images.json with the images of all runs, the runs' folders.

The plan says what a sweep trains, and is compared with the settings of the command that resumes it. The state
of a run is in the run's own folder alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastae.config import flag
from fastae.data.files.manifest import NAME, Manifest
from fastae.errors import FastaeError
from fastae.runs.folder import RunFolder, locked_folder
from fastae.runs.metrics import read_metrics
from fastae.runs.weights import finished_at
from fastae.sweep.plan import SweepConfig
from fastae.utils.files import mode_at, refuse_links, remove_drafts, write_json
from fastae.utils.json import read_json


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

    def read_manifest(self) -> Manifest | None:
        """Returns the images that all runs train on; None if the sweep has not begun.

        Raises FastaeError if images.json is damaged or edited.
        """
        return Manifest.read(self.manifest_file) if mode_at(self.manifest_file) else None

    def begin(self, config: SweepConfig, manifest: Manifest) -> None:
        """Writes sweep.json and images.json, unless the sweep has begun.

        Raises FastaeError if they cannot be written. The sweep has then not begun.
        """
        if mode_at(self.manifest_file):
            return
        try:
            write_json(self.file, config.settings())
            manifest.write(self.manifest_file)
        except OSError as error:
            for file in (self.manifest_file, self.file):
                file.unlink(missing_ok=True)
            reason = error.strerror or error
            raise FastaeError(f"cannot write the sweep folder {str(self.path)!r}: {reason}") from None

    def require_resumable(self, config: SweepConfig) -> None:
        """Raises FastaeError unless the folder is empty or holds a sweep with these settings.

        Raises OSError if the folder cannot be listed.
        """
        if mode_at(self.file):
            found, wanted = self.read_settings(), config.settings()
            nothing = object()  # a name that is missing differs from one whose value is None
            differing = [
                f"{flag(name)} {found.get(name)!s:.60}, not {wanted.get(name)!s:.200}"
                for name in dict.fromkeys([*wanted, *found])
                if found.get(name, nothing) != wanted.get(name, nothing)
            ]
            if differing:
                raise FastaeError(
                    f"{str(self.path)!r} holds a sweep with {', '.join(differing)}: "
                    "give the same settings to resume it, or name another --out"
                )
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise FastaeError(f"--out {str(self.path)!r} is not empty and holds no sweep: name a new folder")

    def read_settings(self) -> dict[str, Any]:
        """Returns the content of sweep.json. Raises FastaeError if it is not what fastae writes."""
        try:
            return read_json(self.file, dict[str, Any])
        except (OSError, ValueError) as error:
            raise FastaeError(f"{str(self.file)!r} cannot be read as a sweep: {error}") from None


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
        remove_drafts(folder)
        yield SweepFolder(folder)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, by what its folder contains."""

    has_begun: bool = False

    finished_at: int | None = None
    """The iteration of the final weights; None if the run is not finished."""

    iteration: int = 0
    """The last iteration that was logged."""

    loss_index: float = math.nan
    """The error of the last logged training batch: MSE x 1e7; nan if unknown, like the next two."""

    held_out: float = math.nan
    """The error of the held-out images at the last evaluation: MSE x 1e7."""

    images_per_second: float = math.nan
    """The speed at the last log step."""

    seconds: float = 0.0
    """The time of training in all sessions."""


def read_status(run: RunFolder, batch_size: int) -> RunStatus:
    """Reads how far a run is, from metrics.csv and weights. Figures that cannot be read are unknown."""
    if not run.config_file.exists():
        return RunStatus()
    try:
        metrics = read_metrics(run.metrics_file)
    except (OSError, ValueError):
        return RunStatus(has_begun=True, finished_at=finished_at(run))
    return RunStatus(
        has_begun=True,
        finished_at=finished_at(run),
        iteration=metrics.iteration,
        loss_index=metrics.train.last("loss_index"),
        held_out=metrics.held_out.last("loss_index"),
        images_per_second=metrics.train.last("images_per_second"),
        seconds=metrics.seconds(batch_size),
    )
