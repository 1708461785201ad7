"""One run from start to end: a new one, or one that is resumed; its folder, and its faults in one line.

A run's whole state is its weights, its optimizer's state and the iteration, so one that continues from a
checkpoint is the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.errors import RunFailure, Stopped, TrainingFault
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo
from fastae.runs.checkpoint import State
from fastae.runs.folder import RunFolder, new_run
from fastae.training.distributed import Ranks, joined, launched
from fastae.training.out_of_memory import OUT_OF_HOST_MEMORY, advice
from fastae.training.progress import Display, TrainingProgress
from fastae.training.recorder import NullRecorder, Recorder
from fastae.training.session import Models, Session, open_session
from fastae.training.signals import StopSignals
from fastae.training.trainer import Result, Trainer
from fastae.utils.console import log, printable
from fastae.utils.device import choose_precision
from fastae.utils.environment import command
from fastae.utils.memory import peak_bytes


def train(config: TrainConfig) -> Path:
    """Trains as `config` says; returns the run's folder.

    Raises FastaeError for a user's mistake, RunFailure if the run cannot continue, Stopped after a signal.
    """
    ranks = launched()
    with new_run_of(config, ranks) as run:
        train_in(open_session(config, ranks, run), config, run)
    log_results(run)
    return run.path


@contextmanager
def new_run_of(config: TrainConfig, ranks: Ranks) -> Iterator[RunFolder]:
    """The run's folder on all ranks: the first makes it and holds its lock, the others learn of it."""
    if not ranks.is_main:
        yield RunFolder(Path(ranks.receive("run")), new=True)
        return
    with new_run(Path(config.out) if config.out else None, config.loss) as run:
        ranks.broadcast("run", str(run.path))
        yield run


def train_in(session: Session, config: TrainConfig, run: RunFolder, state: State | None = None) -> None:
    """One run to its end, in a session that is open: a new one, or from `state` on."""
    # Outermost: a signal, torchrun's for one, must not end what still saves or explains.
    with (
        StopSignals(config.signal_grace) as stops,
        joined(session.ranks, session.hardware.device),
        open_trainer(session, config, run, stops, TrainingProgress(), state) as trainer,
    ):
        while trainer.advance():
            pass
        log_result(trainer.result(), session.hardware.device)
        trainer.finish()


@contextmanager
def open_trainer(
    session: Session,
    config: TrainConfig,
    run: RunFolder,
    stops: StopSignals,
    display: Display,
    state: State | None = None,
    models: Models | None = None,
) -> Iterator[Trainer]:
    """A run ready to train, new or from `state` on; its folder is locked by the caller.

    models: what it trains, if that is not the session's own.

    What ends it early, here or in the block, is raised as RunFailure or Stopped, which say how to resume.
    """
    ranks, hardware = session.ranks, session.hardware
    try:
        loader = session.loader.reseeded(config.seed)
        step = (models or session.models).step(config, loader.images)
        info = RunInfo(loader.kind, hardware.compiled, config.amp, config.batch_size, ranks.size)
        hz = config.gpu_sample_hz if ranks.is_main else 0
        with Monitor(run.path, hz, local_gpus(hardware.device, ranks.size), info) as monitor:
            if hardware.compiled:
                monitor.enter(Phase.COMPILE)
            graph = step.record(loader.example()) if ranks.size == 1 else ""
            description = session.describe(config, graph)
            start = state["iteration"] if state else 0
            if state:
                step.restore(state)
                description["resumed"] = [*_resumed_before(state), start]
            log(f"device    {description['device']}: {description['step']}")
            if not config.amp and choose_precision(hardware.device, amp=True).dtype:
                log("hint      --amp is off, and this device multiplies bf16 or fp16 faster than float32")
            log(f"run       {run.path}")
            recorder: NullRecorder = NullRecorder(run)
            if ranks.is_main:
                run.begin(description, session.images.manifest, session.skipped)
                recorder = Recorder(run, config, description, monitor, display, start)
            with recorder, session.reporting_to(run):
                yield Trainer(session, config, step, loader, recorder, stops, start)
    except Exception as error:
        raise _described(error, session, config, run) from None


def _resumed_before(state: State) -> list[int]:
    earlier = state["run"].get("resumed")
    return earlier if isinstance(earlier, list) else []


def _described(error: Exception, session: Session, config: TrainConfig, run: RunFolder) -> Exception:
    """What a run meets from outside as one line that says how to resume it; other errors as they are."""
    hint = run.resume_hint()
    if isinstance(error, Stopped):
        return Stopped(error.caught, f"{error}; {hint}")
    if isinstance(error, TrainingFault):
        return RunFailure(f"{error}; {hint}")
    if isinstance(error, torch.OutOfMemoryError) or OUT_OF_HOST_MEMORY in str(error):
        return RunFailure(advice(config, session.loader, session.hardware.device))
    if isinstance(error, OSError):
        reason = error.strerror or error
        return RunFailure(f"cannot write to the run folder {str(run.path)!r}: {reason}; {hint}")
    if isinstance(error, RuntimeError) and session.ranks.size > 1:
        first = printable(str(error).splitlines()[0])
        return RunFailure(f"another rank ended, or cannot be reached: {first}; {hint}")
    return error


def log_result(result: Result, device: torch.device) -> None:
    """A finished run in two lines."""
    if result.held_out:
        *first, (_, last) = result.held_out
        before = "".join(
            f"{index:,.0f} at {f'iteration {iteration:,}' if iteration else 'the start'}, "
            for iteration, index in first
        )
        log(f"\nheld-out loss_index {before}{last:,.0f} at the end", "bold")
    memory = f"{peak_bytes() / 2**30:.1f} GiB"
    if device.type == "cuda":
        memory += f" host, {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU (PyTorch's)"
    log(
        f"{result.images_per_second:,.1f} images/s, data wait {result.data_wait:.2%}, first step "
        f"{result.first_step_seconds:.1f} s, peak memory {memory}"
    )


def log_results(run: RunFolder) -> None:
    """Where to look, in three lines."""
    log(f"run       {run.path} ({run.size() / 1e6:,.0f} MB)", "bold")
    log(f"picture   {run.latest_sample()}", "bold")
    log(f"curves    {command('tensorboard')} --logdir {run.path.parent}", "bold")
