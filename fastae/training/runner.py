"""One run from start to end: a new one, or one that is resumed; its folder, and its faults in one line.

A run's whole state is its weights, its optimizer's state and the iteration, so one that continues from a
checkpoint is the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from subprocess import CalledProcessError

import torch

from fastae.config import TrainConfig
from fastae.errors import NotFinite, RunFailure, Stopped, TrainingFault
from fastae.flops import training_flops
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo
from fastae.runs.checkpoint import Progress, State
from fastae.runs.folder import RunFolder, new_run
from fastae.training.distributed import joined, launched
from fastae.training.out_of_memory import OUT_OF_HOST_MEMORY, advice
from fastae.training.progress import LogLines, ProgressBar
from fastae.training.recorder import Recorder
from fastae.training.session import Models, Session, open_session
from fastae.training.signals import StopSignals
from fastae.training.trainer import Clock, Trainer
from fastae.utils.console import log, printable, size
from fastae.utils.device import peak_flops
from fastae.utils.environment import command
from fastae.utils.limits import thread_limit

SIGNALS_APART = 1.0
"""Seconds in which a signal is awaited that has ended a compiler already."""


def train(config: TrainConfig) -> Path:
    """Trains as `config` says; returns the run's folder.

    Raises FastaeError for a user's mistake, RunFailure if the run cannot continue, Stopped after a signal.
    """
    ranks = launched()
    out = Path(config.out) if config.out else None
    with new_run(out, config.loss) if ranks.is_main else nullcontext() as mine:
        path = Path(ranks.share("run", str(mine.path) if mine else ""))
        train_in(open_session(config, ranks), config, RunFolder(path))
    return path


def train_in(session: Session, config: TrainConfig, run: RunFolder, state: State | None = None) -> None:
    """One run to its end, in an open session: a new one, or from `state` on."""
    # Outermost: no signal, such as torchrun sends to the other ranks, may end what still saves or reports.
    with (
        StopSignals() as stops,
        joined(session.ranks, session.hardware.device),
        open_trainer(Models(session), config, run, stops, ProgressBar(), state) as trainer,
    ):
        while trainer.advance():
            pass
        if session.ranks.is_main:
            trainer.log_result()
        trainer.finish()
    if session.ranks.is_main:
        log_folder(run)


@contextmanager
def open_trainer(
    models: Models,
    config: TrainConfig,
    run: RunFolder,
    stops: StopSignals,
    display: LogLines,
    state: State | None = None,
    at_once: int = 1,
) -> Iterator[Trainer]:
    """A run ready to train, new or from `state` on; its folder is locked by the caller.

    at_once: how many runs take turns. What ends this one early, here or in the block, is raised as RunFailure
    or Stopped, which say how to resume.
    """
    session = models.session
    ranks, hardware = session.ranks, session.hardware
    try:
        with ExitStack() as held:
            loader = session.loader.reseeded(config.seed)
            step = models.step(config, loader.images)
            info = RunInfo(
                loader.kind,
                hardware.compiled,
                config.amp,
                config.batch_size,
                ranks.size,
                hardware.device.type == "cuda",
                at_once,
                training_flops(config.image_size, config.latent),
                peak_flops(hardware.device, hardware.precision),
            )
            hz = config.gpu_sample_hz if ranks.is_main else 0
            gpus = local_gpus(hardware.device, ranks.size)
            monitor = held.enter_context(Monitor(run.path, hz, gpus, info))
            if hardware.compiled:
                monitor.enter(Phase.COMPILE)
            graph = step.record(loader.example()) if ranks.size == 1 else ""
            description = session.describe(config, graph, at_once)
            start = state["iteration"] if state else 0
            progress: Progress = state["progress"] if state else Progress()
            if state:
                step.restore(state)
                description = description.resumed_from(state["run"], start)
            log(f"device    {description.device}")
            log(f"step      {description.step}")
            log(f"run       {run.path}")
            recorder = None
            if ranks.is_main:
                run.begin(description, session.images.manifest, session.skipped)
                recorder = Recorder(held, run, description, monitor, display, start, progress)
            session.replaced.runs.append(run)
            held.callback(session.replaced.runs.remove, run)
            clock = Clock(progress.seconds, at_once)
            yield Trainer(session, config, step, loader, run, recorder, stops, start, clock)
    except Exception as error:
        raise _described(error, session, config, run, stops) from None


def _described(
    error: Exception, session: Session, config: TrainConfig, run: RunFolder, stops: StopSignals
) -> Exception:
    """A fault from outside as one line that says how to resume the run; other errors as they are."""
    hint = run.resume_hint()
    if isinstance(error, Stopped):
        return Stopped(error.caught, f"{error}; {hint}")
    if isinstance(error, NotFinite):
        remedy = "a lower --lr" + (" or --no-amp" if config.amp else "")
        return RunFailure(f"{error}; resuming would repeat it: start a new run with {remedy}")
    if isinstance(error, TrainingFault):
        return RunFailure(f"{error}; {hint}")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_HOST_MEMORY in str(error):
        return RunFailure(advice(config, session.loader, session.hardware.device))
    # A signal to the process group, as Ctrl-C sends it, also ends the g++ that torch.compile waits for.
    if _is_compilers(error) and (caught := stops.within(SIGNALS_APART)):
        return Stopped(caught, f"stopped by {caught.name} while compiling; {hint}")
    if isinstance(error, RuntimeError) and (no_threads := thread_limit(error)):
        return RunFailure(f"{no_threads}; {hint}")
    if isinstance(error, CalledProcessError):
        compiler = printable(str(error.cmd[0]))
        return RunFailure(
            f"torch.compile failed, {compiler} exited with {error.returncode}: use --no-compile"
        )
    if isinstance(error, OSError):
        reason = error.strerror or error
        return RunFailure(f"cannot write to the run folder {str(run.path)!r}: {reason}; {hint}")
    if isinstance(error, RuntimeError) and session.ranks.size > 1:
        first = printable(str(error).splitlines()[0])
        return RunFailure(f"another rank ended, or cannot be reached: {first}; {hint}")
    return error


def _is_compilers(error: Exception) -> bool:
    """Whether torch.compile failed: it raises many types, some of them Triton's."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


def log_folder(run: RunFolder) -> None:
    """Logs the folder, the newest picture and the command that shows the curves."""
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.is_symlink()]
    total, kept = (
        sum(path.stat().st_size for path in group)
        for group in (files, [path for path in files if path.suffix == ".pt"])
    )
    log(f"run       {run.path} ({size(total)})", "bold")
    if kept:
        log(
            f"          {size(kept)} of it is the checkpoint, needed only to train longer (--keep 0 drops it)"
        )
    if picture := max(run.samples.glob("*.png"), default=None):
        log(f"picture   {picture}", "bold")
    log(f"curves    {command('tensorboard')} --logdir {run.path.parent}", "bold")
