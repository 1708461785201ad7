"""`fastae sweep`: the runs of a plan over one opened data set, one after the other or several at once.

Started by torchrun, the runs are dealt out: each rank trains its own, on its own GPU.
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
from fastae.runs.checkpoint import State as RunState
from fastae.runs.folder import RunFolder, new_run
from fastae.runs.sweep_folder import State, SweepConfig, SweepFolder, SweepRun, open_sweep
from fastae.sweep.table import SweepTable
from fastae.training.distributed import Ranks, device_of, launched
from fastae.training.progress import Status, log_line
from fastae.training.resume import as_before, log_differences, reopen
from fastae.training.runner import log_result, open_trainer
from fastae.training.session import Models, Session, open_session
from fastae.training.signals import StopSignals
from fastae.utils.console import console, log

POLL_SECONDS = 2.0
RECORD_SECONDS = 10.0
"""A sweep that is killed has lost so much of sweep.json's figures, at most; its runs keep their own."""


def run_sweep(
    config: SweepConfig, path: Path | None = None, at_once: int = 1
) -> tuple[Path, tuple[SweepRun, ...]]:
    """Runs what is not finished of the sweep in a folder; returns the folder and its runs.

    at_once: runs that take turns on one device. Raises FastaeError if the sweep cannot begin or write, and
    Stopped after a signal; the same call resumes it.
    """
    ranks = launched()
    with open_on_all_ranks(config, path, ranks) as folder:
        try:
            runs = Sweep(folder, config.train, ranks, at_once).run()
        except OSError as error:
            raise RunFailure(
                f"cannot write to the sweep's folder {str(folder.path)!r}: {error.strerror or error}; "
                "the same command resumes it"
            ) from None
    for run in runs:
        if run.state is State.FAILED:
            log(f"failed    {run.name}: {run.error}")
    return folder.path, runs


@contextmanager
def open_on_all_ranks(config: SweepConfig, path: Path | None, ranks: Ranks) -> Iterator[SweepFolder]:
    """The first rank opens the sweep's folder, the others learn where it is."""
    if not ranks.is_main:
        yield SweepFolder(Path(ranks.receive("sweep")))
        return
    with open_sweep(config, path) as folder:
        ranks.broadcast("sweep", str(folder.path))
        yield folder


class Sweep:
    """The runs of a sweep's folder as this rank trains them."""

    def __init__(self, folder: SweepFolder, config: TrainConfig, ranks: Ranks, at_once: int) -> None:
        self._folder = folder
        self._config = config
        self._ranks = ranks
        self._at_once = at_once
        self._stopped: Stopped | None = None
        self._runs: dict[str, SweepRun] = {}
        self._displays: dict[str, RunDisplay] = {}
        self._refresh()

    def run(self) -> tuple[SweepRun, ...]:
        """Trains this rank's runs; the first rank then waits for the others. Raises OSError, FastaeError."""
        mine = list(self._runs.values())[self._ranks.rank :: self._ranks.size]
        todo = [run.name for run in mine if run.state is not State.FINISHED]
        with SweepTable(self._view, self._config):
            for name in todo:
                self.change(name, state=State.WAITING)
            if todo:
                session, settings = open_shared_session(self._folder, self._config, self._ranks)
                with StopSignals(settings.signal_grace) as stops:
                    self._train(session, settings, todo, stops)
            if self._ranks.is_main:
                self._wait_for_others()
        return tuple(self._runs.values())

    def _train(self, session: Session, settings: TrainConfig, names: list[str], stops: StopSignals) -> None:
        """Starts a run whenever one of `at_once` slots is free; the runs under way take turns."""
        waiting, slots = deque(names), [Slot(session) for _ in range(min(self._at_once, len(names)))]
        ended: list[Iterator[bool]] = []
        while True:
            for slot in slots:
                if slot.job is None and waiting and not self._stopped:
                    slot.job = self._train_one(session, settings, waiting.popleft(), stops, slot)
            busy = [slot for slot in slots if slot.job]
            if not busy:
                break
            for slot in busy:
                assert slot.job is not None
                with slot.stream():
                    training = next(slot.job, None)
                if training:
                    complete(ended)  # its last checkpoint was written while this one began
                elif training is False:
                    ended.append(slot.job)
                if not training:
                    slot.job = None
        complete(ended)
        if self._stopped:
            raise self._stopped

    def _train_one(
        self, session: Session, settings: TrainConfig, name: str, stops: StopSignals, slot: Slot
    ) -> Iterator[bool]:
        """Trains a run, an iteration per step of this iterator; its failure is recorded, not raised.

        Yields True while it trains, then False once: what remains is to wait for its last checkpoint.
        """
        path = self._folder.path / name
        run = self.change(name, state=State.RUNNING, error="")
        config = replace(settings, loss=run.loss, seed=run.seed, out=str(path))
        display = self._displays[name] = RunDisplay(
            run, config.iterations, self.change, prefix=f"{name}: " if self._at_once > 1 else ""
        )
        outcome: dict[str, Any] = {"state": State.STOPPED}
        try:
            with begun_or_new(path, config) as (folder, state):
                if not folder.new:
                    require_same_images(folder, session)
                start = state["iteration"] if state else 0
                number = list(self._runs).index(name) + 1
                verb = "resumes" if start else "begins"
                log(f"\n{name}: run {number} of {len(self._runs)} {verb}, seed {run.seed}")
                if start < config.iterations:
                    with open_trainer(session, config, folder, stops, display, state, slot.models) as trainer:
                        while trainer.advance():
                            yield True
                        result = trainer.result()
                        log_result(result, session.hardware.device)
                        yield False
                        trainer.finish()
                    outcome["held_out"] = result.held_out[-1][1]
            outcome["state"] = State.FINISHED
        except Stopped as stopped:
            self._stopped = Stopped(
                stopped.caught, f"stopped by {stopped.caught.name}; the same command resumes the sweep"
            )
        except FastaeError as error:
            outcome |= {"state": State.FAILED, "error": str(error)}
            log(f"{name} failed: {error}")
        finally:
            display.record(**outcome)
            del self._displays[name]

    def _wait_for_others(self) -> None:
        """Returns when no other rank has a run to do; one that died takes this process with it (torchrun)."""
        self._refresh()
        while any(run.state in (State.WAITING, State.RUNNING) for run in self._runs.values()):
            time.sleep(POLL_SECONDS)
            self._refresh()

    def _view(self) -> tuple[SweepRun, ...]:
        """All runs, those under way as they are now."""
        return tuple(
            self._displays[name].current() if name in self._displays else run
            for name, run in self._runs.items()
        )

    def _refresh(self) -> None:
        self._runs = {run.name: run for run in self._folder.read().runs}

    def change(self, name: str, **values: Any) -> SweepRun:
        """Sets fields of a run in sweep.json. Raises OSError."""
        self._runs[name] = self._folder.change(name, **values)
        return self._runs[name]


@contextmanager
def begun_or_new(path: Path, config: TrainConfig) -> Iterator[tuple[RunFolder, RunState | None]]:
    """A run's folder, locked, and its newest checkpoint; a new folder for a run that has not begun."""
    run = RunFolder(path)
    if run.config.exists():
        with run.locked():
            yield run, reopen(run, config)
    else:
        with new_run(path, config.loss, "the run folder") as run:
            yield run, None


def require_same_images(run: RunFolder, session: Session) -> None:
    """Raises FastaeError if a run began with other images than those of the session."""
    if run.manifest().fingerprint != session.images.manifest.fingerprint:
        raise FastaeError(
            f"it began with other images than the sweep; fastae train --resume {run.path} resumes it alone"
        )


class Slot:
    """A place for one run at a time: the model that is trained in it, and a stream of its own on a GPU."""

    def __init__(self, session: Session) -> None:
        self.models = Models(session.hardware, session.ranks)
        self.job: Iterator[bool] | None = None
        on_gpu = session.hardware.device.type == "cuda"
        self._stream = torch.cuda.Stream(session.hardware.device) if on_gpu else None

    def stream(self) -> AbstractContextManager:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()


class RunDisplay:
    """The `fastae.training.progress.Display` of one run. change: sets fields of it in sweep.json.

    prefix: of its log lines, if several runs write in turn.
    """

    def __init__(
        self, run: SweepRun, iterations: int, change: Callable[..., SweepRun], prefix: str = ""
    ) -> None:
        self._run = run
        self._iterations = iterations
        self._change = change
        self._prefix = prefix
        self._iteration = run.iteration
        self._began = self._recorded = time.monotonic()

    def current(self) -> SweepRun:
        """The run as it is now, of which sweep.json has an older view."""
        seconds = self._run.seconds + time.monotonic() - self._began
        return replace(self._run, iteration=self._iteration, seconds=seconds)

    def begin(self, start: int, iterations: int) -> AbstractContextManager:
        self._iteration = start
        return nullcontext()

    def advance(self) -> None:
        self._iteration += 1

    def report(self, iteration: int, status: Status) -> None:
        self._run = replace(
            self._run, loss_index=status.loss_index, images_per_second=status.images_per_second
        )
        if not console.is_terminal:
            log_line(iteration, self._iterations, status, self._prefix)
        if time.monotonic() - self._recorded > RECORD_SECONDS:
            self.record()

    def record(self, **values: Any) -> None:
        """Writes how far the run is, and `values`, into sweep.json. Raises OSError."""
        now = self.current()
        figures = {name: getattr(now, name) for name in FIGURES}
        self._change(now.name, **figures, **values)
        self._recorded = time.monotonic()


FIGURES = ("iteration", "loss_index", "images_per_second", "seconds")


def complete(ended: list[Iterator[bool]]) -> None:
    """Waits for the last checkpoints of runs whose iterations are done."""
    while ended:
        next(ended.pop(), None)


def open_shared_session(
    folder: SweepFolder, config: TrainConfig, ranks: Ranks
) -> tuple[Session, TrainConfig]:
    """What all runs share, on all ranks: images, and, in a sweep that is resumed, loader and compiling."""
    config = replace(config, device=device_of(config.device, ranks))
    runs = [folder.run(run.name) for run in folder.read().runs]
    before = next((run.describe() for run in runs if run.config.exists()), {})
    pinned = as_before(config, {"data": config.data} if config.data else {}, before)
    session = open_session(pinned, manifest=folder.manifest())
    agreed = folder.agree_on(session.images.manifest)
    if agreed.fingerprint != session.images.manifest.fingerprint:
        # Another rank was first, and a file came or went between the two.
        session = open_session(pinned, manifest=agreed)
    log_differences(session, pinned, before)
    return session, config
