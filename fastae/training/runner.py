"""One run from start to end: a new one, or one that is resumed.

A run's whole state is its weights, its optimizer's state and the iteration. Therefore a run that continues
from a checkpoint ends like one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from fastae.config import TrainConfig
from fastae.device.cards import peak_flops
from fastae.experiment.flops import training_flops
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo
from fastae.runs.checkpoint import Checkpoint, Progress
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder, new_run
from fastae.training.distributed import joined, launched
from fastae.training.failures import explain
from fastae.training.progress import LogLines, ProgressBar
from fastae.training.recorder import Recorder
from fastae.training.session import Models, Session, open_session
from fastae.training.signals import StopSignals
from fastae.training.trainer import Clock, Trainer
from fastae.utils.console import log, size
from fastae.utils.environment import command


def train(config: TrainConfig) -> Path:
    """Trains as `config` says; returns the run's folder.

    Raises FastaeError for a user's mistake, RunFailure if the run cannot continue, Stopped after a signal.
    """
    ranks = launched()
    out = Path(config.out) if config.out else None
    with new_run(out, config.loss) if ranks.is_main else nullcontext() as mine:
        path = Path(ranks.broadcast("run", str(mine.path) if mine else ""))
        train_in(open_session(config, ranks), RunFolder(path))
    return path


def train_in(session: Session, run: RunFolder, newest: Checkpoint | None = None) -> None:
    """Trains the run of a session to its end: a new one, or one that continues from a checkpoint."""
    # Outermost: a signal, such as torchrun sends to the other ranks, must not end code that saves or reports.
    with StopSignals() as stops, joined(session.ranks, session.hardware.device):
        _train_joined(session, run, newest, stops=stops)
    if session.ranks.is_main:
        log_folder(run)


def _train_joined(session: Session, run: RunFolder, newest: Checkpoint | None, stops: StopSignals) -> None:
    """Trains a run whose ranks are joined. The model, which DDP shares, is freed when this returns."""
    models, display = Models(session), ProgressBar()
    with open_trainer(models, session.config, run, stops=stops, display=display, newest=newest) as trainer:
        while trainer.advance():
            pass


@contextmanager
def open_trainer(
    models: Models,
    config: TrainConfig,
    run: RunFolder,
    stops: StopSignals,
    display: LogLines,
    newest: Checkpoint | None = None,
    *,
    at_once: int = 1,
) -> Iterator[Trainer]:
    """Makes a run ready to train. The caller has locked its folder.

    Args:
        models: the models of the session in which the run is trained.
        config: the run's settings.
        run: the run's folder.
        stops: asks for an early, orderly end.
        display: shows the log steps.
        newest: the checkpoint that the run continues from; None for a new run.
        at_once: how many runs take turns.

    Raises:
        RunFailure, Stopped: the run ended early, here or in the block; the message says how to resume it.
    """
    session = models.session
    try:
        with ExitStack() as stack:
            loader = session.loader.reseeded(config.seed)
            step = models.step(config, loader.make_batch)
            description = session.describe(config, at_once)
            monitor = stack.enter_context(open_monitor(session, description, run))
            if session.hardware.compiled:
                monitor.enter(Phase.COMPILE)
            if session.ranks.size == 1 and (note := step.capture(loader.example())):
                description = replace(description, step=f"{description.step}, {note}")
            start, progress = (newest.iteration, newest.progress) if newest else (0, Progress())
            if newest:
                step.restore(newest.training)
                for line in description.differences(newest.description):
                    log(f"differs   {line}")
                description = description.resumed_from(newest.description, start)
            log(f"device    {description.device}")
            log(f"step      {description.step}")
            log(f"run       {run.path}")
            recorder = None
            if session.ranks.is_main:
                run.begin(description, session.folder.manifest, session.skipped)
                recorder = Recorder(
                    stack,
                    run,
                    description,
                    monitor=monitor,
                    display=display,
                    start=start,
                    progress=progress,
                )
            session.replaced.runs.append(run)
            stack.callback(session.replaced.runs.remove, run)
            yield Trainer(
                session,
                description,
                run,
                step=step,
                loader=loader,
                recorder=recorder,
                stops=stops,
                start=start,
                clock=Clock(progress.seconds, at_once),
            )
    except Exception as error:
        raise explain(error, session, run, stops=stops) from None


def open_monitor(session: Session, description: RunDescription, run: RunFolder) -> Monitor:
    """Makes the monitor of a run. If there are several ranks, only the main one samples."""
    hardware, ranks, config = session.hardware, session.ranks, description.config
    info = RunInfo(
        loader=session.loader.kind,
        compiled=hardware.compiled,
        amp=config.amp,
        batch_size=config.batch_size,
        ranks=ranks.size,
        on_gpu=hardware.device.type == "cuda",
        image_flops=training_flops(config.image_size, config.latent),
        peak_flops=peak_flops(hardware.device, hardware.precision),
    )
    hz = config.gpu_sample_hz if ranks.is_main else 0
    return Monitor(run.path, hz, local_gpus(hardware.device, ranks.size), info=info)


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
