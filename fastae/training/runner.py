"""One run, from its settings or from a checkpoint: what it needs, its folder, and its faults in words.

A run's whole state is its weights, its optimiser's and the iteration, so one that goes on from a checkpoint
is the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.errors import RunFailure
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo
from fastae.runs.checkpoint import State
from fastae.runs.events import BEFORE_ALL, rewind
from fastae.runs.folder import RunFolder, new_run
from fastae.training.distributed import Ranks, joined, launched
from fastae.training.out_of_memory import OUT_OF_HOST_MEMORY, advice
from fastae.training.progress import Display, TrainingProgress
from fastae.training.session import Session
from fastae.training.signals import StopSignals
from fastae.training.trainer import Training, how_to_go_on
from fastae.utils.console import printable, say


def train(config: TrainConfig) -> Path:
    """Runs what `config` says; returns the run's folder.

    Raises FastaeError for a user's mistake, RunFailure where the run cannot go on, and Stopped after a
    signal.
    """
    ranks = launched()
    with new_run_of(config, ranks) as run:
        train_in(Session(config, ranks, run), config, run)
    show_results(run)
    return run.path


@contextmanager
def new_run_of(config: TrainConfig, ranks: Ranks) -> Iterator[RunFolder]:
    """The run's folder on all ranks: the first makes it and holds its lock, the others hear of it."""
    if not ranks.first:
        yield RunFolder(Path(ranks.hear("run")), new=True)
        return
    with new_run(Path(config.out) if config.out else None, config.loss) as run:
        ranks.tell("run", str(run.path))
        yield run


def show_results(run: RunFolder) -> None:
    """Where to look, in three lines."""
    say(f"run       {run.path}")
    say(f"picture   {run.latest_sample()}")
    say(f"curves    tensorboard --logdir {run.path.parent}")


def train_in(
    session: Session,
    config: TrainConfig,
    run: RunFolder,
    state: State | None = None,
    display: Display | None = None,
) -> float | None:
    """One run in a session that is open and a folder that is locked: from `state` on, if there is one.

    Returns its last held-out loss_index. Raises RunFailure and Stopped.
    """
    ranks, device = session.ranks, session.device
    session.run = run if ranks.first else None
    # Outermost: a signal, torchrun's for one, must not end what still saves or explains.
    with (
        StopSignals(config.signal_grace) as stops,
        joined(ranks, device),
        faults_in_words(session, config, run),
    ):
        loader = session.loader.reseeded(config.seed)
        step = session.step(config, loader)
        info = RunInfo(loader.kind, session.compiled, config.amp, config.batch_size, ranks.size)
        hz = config.gpu_sample_hz if ranks.first else 0
        with Monitor(run.path, hz, local_gpus(device, ranks.size), info) as monitor:
            if session.compiled:
                monitor.enter(Phase.COMPILE)
            graph_note = step.record(loader.example()) if ranks.alone else ""
            description = session.describe(config, graph_note)
            start = state["iteration"] if state else 0
            if state:
                step.restore(state)
                earlier = state["run"].get("resumed")
                description["resumed"] = [*(earlier if isinstance(earlier, list) else []), start]
            if ranks.first:
                skipped = [*session.folder.skipped, *session.replaced]
                if run.new:
                    run.begin(description, session.folder.listing, skipped)
                else:
                    run.redescribe(description)
                    run.note_skipped(skipped)
                    rewind(run.path, start if state else BEFORE_ALL)
            say(f"device    {description['device']}: {description['step']}")
            say(f"run       {run.path}")
            display = display or TrainingProgress()
            with Training(
                session, config, run, description, monitor, step, loader, start, display, stops
            ) as training:
                return training.loop()


@contextmanager
def faults_in_words(session: Session, config: TrainConfig, run: RunFolder) -> Iterator[None]:
    """What a run meets from outside becomes one line that says how to go on."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise RunFailure(advice(config, session.loader, session.device)) from None
    except OSError as error:
        reason = error.strerror or error
        raise RunFailure(
            f"cannot write to the run folder {str(run.path)!r}: {reason}; {how_to_go_on(run)}"
        ) from None
    except RuntimeError as error:
        if OUT_OF_HOST_MEMORY in str(error):
            raise RunFailure(advice(config, session.loader, session.device)) from None
        if session.ranks.alone:
            raise
        first = printable(str(error).splitlines()[0])
        raise RunFailure(f"another rank ended, or cannot be reached: {first}; {how_to_go_on(run)}") from None
