"""`fastae sweep`: trains the runs of a sweep in one session, one after the other or several at once.

Under torchrun, the runs are distributed over the ranks: each rank trains its own runs on its own GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.runs.checkpoint import Checkpoint, Progress
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder, new_run
from fastae.runs.loaded_model import finished_at
from fastae.runs.sweep_folder import RunState, SweepConfig, SweepFolder, SweepRun, open_sweep
from fastae.runs.weights import restore_weights
from fastae.sweep.table import SweepTable
from fastae.training.distributed import Ranks, device_of, launched
from fastae.training.progress import LogLines
from fastae.training.resume import earlier_choices, reopen
from fastae.training.run_ahead import TrainMetrics
from fastae.training.runner import open_trainer
from fastae.training.session import Models, Session, open_session
from fastae.training.signals import StopSignals
from fastae.utils.console import log
from fastae.utils.paths import expand_home

POLL_SECONDS = 2.0
"""The seconds between two readings of sweep.json while the main rank waits for the others."""


def run_sweep(
    config: SweepConfig, path: Path | None = None, at_once: int = 1
) -> tuple[Path, tuple[SweepRun, ...]]:
    """Trains the runs of a sweep that are not finished. After an interruption, the same call resumes it.

    Args:
        config: the sweep's settings.
        path: its folder; None for a new one, runs/TIME-sweep.
        at_once: how many runs take turns on a device.

    Returns:
        The sweep's folder, and its runs as they are at the end. Some may have failed.

    Raises:
        FastaeError: the sweep cannot begin.
        RunFailure: the sweep's folder cannot be written.
        Stopped: a signal stopped the sweep.
    """
    if at_once > 1 and config.train.profile:
        raise FastaeError("--profile traces one run: use it without --at-once")
    ranks = launched()
    path = expand_home(path) if path else None
    with open_sweep(config, path) if ranks.is_main else nullcontext() as mine:
        try:
            folder = mine or SweepFolder(Path(ranks.broadcast("sweep")))
            sweep = Sweep(config, folder, ranks=ranks, at_once=at_once)
            runs = sweep.run()
        except OSError as error:
            reason = f"cannot write to the sweep's folder: {error.strerror or error}"
            raise RunFailure(f"{reason}; {sweep.resume_hint()}") from None
    for run in runs:
        if run.state is RunState.FAILED:
            log(f"failed    {run.name}: {run.error}")
    return sweep.folder.path, runs


class Sweep:
    """Trains this rank's runs of a sweep, and keeps the state of all runs in sweep.json.

    Args:
        config: the sweep's settings.
        folder: its folder, which the main rank has locked.
        ranks: this rank, and how many there are.
        at_once: how many runs take turns on this rank's device.
    """

    def __init__(self, config: SweepConfig, folder: SweepFolder, *, ranks: Ranks, at_once: int) -> None:
        self.folder = folder
        self._config = config
        self._ranks = ranks
        self._at_once = at_once
        self._stopped: Stopped | None = None
        self._runs = {run.name: run for run in config.runs()}

    def resume_hint(self) -> str:
        """Returns, in words, what resumes the sweep."""
        return f"the same command, with --out {self.folder.path}, resumes it"

    def run(self) -> tuple[SweepRun, ...]:
        """Trains this rank's runs; the main rank then waits for the other ranks. Returns all runs.

        Raises FastaeError if the sweep cannot begin, OSError if its folder cannot be written, and Stopped
        after a signal.
        """
        if self.folder.manifest_file.exists():
            self._refresh()
            self._correct_states()
        mine = list(self._runs.values())[self._ranks.rank :: self._ranks.size]
        todo = [run.name for run in mine if run.state is not RunState.FINISHED]
        self._at_once = min(self._at_once, max(1, len(todo)))
        session = self._open_session() if todo else None
        if self._ranks.is_main:
            self._begin(session)
        with SweepTable(lambda: tuple(self._runs.values()), self._config.train):
            if session:
                with StopSignals() as stops:
                    self._train(todo, session, stops)
            if self._ranks.is_main:
                self._wait_for_others()
        return tuple(self._runs.values())

    def _begin(self, session: Session | None) -> None:
        """Writes the sweep's folder, and shows it to the other ranks. There is no session if all is done."""
        if session:
            self.folder.begin(self._config, session.folder.manifest)
        for run in self._runs.values():
            if run.state is not RunState.FINISHED:
                self._set_and_write(run.name, state=RunState.WAITING)
        self._ranks.broadcast("sweep", str(self.folder.path))

    def _open_session(self) -> Session:
        """Opens the session that all runs of this rank share.

        If the sweep is resumed, the session uses the data, and the loader, of the runs that have begun, and
        compiles as they did. A data folder that the user names now is used instead of theirs.
        """
        config = self._config.train
        folders = (self.folder.run(name) for name in self._runs)
        begun = next((run for run in folders if run.config_file.exists()), None)
        before = begun.read_description() if begun else RunDescription(config)
        choices = earlier_choices(before, ["data"] if config.data else [])
        return open_session(
            replace(config, data=config.data or before.config.data),
            manifest=self.folder.read_manifest(),
            at_once=self._at_once,
            overrides=choices | {"device": device_of(config.device, self._ranks)},
        )

    def _train(self, names: list[str], session: Session, stops: StopSignals) -> None:
        """Starts a run whenever a slot is free; the runs in progress take turns."""
        waiting, slots = deque(names), [Slot(session) for _ in range(self._at_once)]
        while any(slot.job for slot in slots) or (waiting and not self._stopped):
            for slot in slots:
                if slot.job is None and waiting and not self._stopped:
                    slot.job = self._train_one(waiting.popleft(), slot, stops)
                if slot.job:
                    with slot.stream():
                        slot.job = slot.job if next(slot.job, None) else None
        if self._stopped:
            raise self._stopped

    def _train_one(self, name: str, slot: Slot, stops: StopSignals) -> Iterator[bool]:
        """Trains a run in a slot, and yields True after each iteration.

        An error of the run is recorded in sweep.json, not raised.
        """
        self._set_and_write(name, state=RunState.RUNNING, error="")
        run, folder = self._runs[name], self.folder.run(name)
        session = slot.models.session
        config = replace(session.config, loss=run.loss, seed=run.seed, out=str(folder.path))
        state, reason = RunState.STOPPED, ""
        try:
            with begun_or_new(folder, config, session) as newest:
                yield from self._iterations(run, config, newest, slot=slot, stops=stops)
            state = RunState.FINISHED
        except Stopped as stopped:
            self._stopped = Stopped(stopped.caught, f"stopped by {stopped.caught.name}; {self.resume_hint()}")
        except FastaeError as error:
            state, reason = RunState.FAILED, str(error)
            log(f"{name} failed: {error}")
        finally:
            held_out = folder.logged(config.iterations).held_out
            self._set_and_write(name, state=state, error=reason, held_out=held_out)

    def _iterations(
        self, run: SweepRun, config: TrainConfig, newest: Checkpoint | None, *, slot: Slot, stops: StopSignals
    ) -> Iterator[bool]:
        """Trains a run from its newest checkpoint to its end, and yields True after each iteration."""
        start, progress = (newest.iteration, newest.progress) if newest else (0, Progress())
        number, verb = list(self._runs).index(run.name) + 1, "resumes" if start else "begins"
        log(f"\n{run.name}: run {number} of {len(self._runs)} {verb}, seed {run.seed}")
        folder = self.folder.run(run.name)
        logged = folder.logged(start)
        run = replace(run, iteration=start, seconds=progress.seconds)
        run = replace(run, loss_index=logged.loss_index, held_out=logged.held_out)
        self._set(run)
        if newest and config.ended_by(start, progress.seconds):
            restore_weights(folder, newest)
            return
        with open_trainer(
            slot.models,
            config,
            folder,
            stops=stops,
            display=RunDisplay(run, self._set, self._at_once),
            newest=newest,
            at_once=self._at_once,
        ) as trainer:
            while trainer.advance():
                yield True

    def _wait_for_others(self) -> None:
        """Waits until no run is waiting or running. If another rank dies, torchrun ends this one."""
        self._refresh()
        while any(run.state in (RunState.WAITING, RunState.RUNNING) for run in self._runs.values()):
            time.sleep(POLL_SECONDS)
            self._refresh()

    def _set(self, run: SweepRun) -> None:
        """Replaces the run of this name, but not in sweep.json."""
        self._runs[run.name] = run

    def _set_and_write(self, name: str, **values: Any) -> None:
        """Sets fields of a run, here and in sweep.json. Raises OSError."""
        self._set(replace(self._runs[name], **values))
        self.folder.change(self._runs[name])

    def _correct_states(self) -> None:
        """Corrects states in sweep.json that do not agree with the weights, which only a finished run has."""
        for run in tuple(self._runs.values()):
            has_weights = finished_at(self.folder.run(run.name)) is not None
            if has_weights and self._config.train.keep == 0:
                self._set_and_write(run.name, state=RunState.FINISHED)  # with keep 0 it has no checkpoint
            elif run.state is RunState.FINISHED and not has_weights:
                log(f"{run.name}: finished according to sweep.json, but it has no weights: resuming it")
                self._set(replace(run, state=RunState.WAITING))

    def _refresh(self) -> None:
        """Reads the runs from sweep.json, which other ranks write, too."""
        self._runs = {run.name: run for run in self.folder.read().runs}


class Slot:
    """Holds one run at a time, with a model, which its runs train one after the other, and a stream."""

    def __init__(self, session: Session) -> None:
        self.models = Models(session)
        self.job: Iterator[bool] | None = None
        """The training of the run in this slot, from `Sweep._train_one`; None if the slot is free."""
        device = session.hardware.device
        # PyTorch has 32 streams of each priority, and reuses them in turn. Captures and uploads take a stream
        # of the default priority for each run. With another priority, this stream is never one of them.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def stream(self) -> AbstractContextManager:
        """Returns a context in which the device's work is queued in this slot's stream."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()


class RunDisplay(LogLines):
    """Shows the log steps of a sweep's run as lines, and in the sweep's table.

    Args:
        run: the run as it is now.
        update: is called with the run's new figures after each log step.
        at_once: how many runs take turns. If there are several, each line begins with the run's name.
    """

    def __init__(self, run: SweepRun, update: Callable[[SweepRun], None], at_once: int) -> None:
        super().__init__(prefix=f"{run.name}: " if at_once > 1 else "")
        self._run = run
        self._set = update
        self._at_once = at_once

    def report(self, metrics: TrainMetrics, remaining: float) -> None:
        super().report(metrics, remaining)
        self._run = replace(
            self._run,
            iteration=metrics.iteration,
            loss_index=metrics.loss_index,
            images_per_second=metrics.window.images_per_second,
            seconds=self._run.seconds + metrics.window.seconds / self._at_once,
        )
        self._set(self._run)


@contextmanager
def begun_or_new(run: RunFolder, config: TrainConfig, session: Session) -> Iterator[Checkpoint | None]:
    """Locks a run's folder, and yields the run's newest checkpoint, which is None if there is none.

    The folder is made if the run has not begun. Raises FastaeError if the run began with other images than
    those of the session.
    """
    if run.config_file.exists():
        with run.lock():
            newest = reopen(run, config)
            if (
                newest
                and run.read_manifest(newest.description).fingerprint != session.folder.manifest.fingerprint
            ):
                raise FastaeError(
                    "the run began with other images than the sweep's; "
                    f"to resume it alone: fastae train --resume {run.path}"
                )
            yield newest
    else:
        with new_run(run.path, config.loss, "the run folder"):
            yield None
