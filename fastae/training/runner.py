"""One run from start to end: a new one, or one that is resumed.

A run's whole state is its weights, its optimizer's state and the iteration. Therefore a run that continues
from a checkpoint ends like one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from fastae.config import TrainConfig
from fastae.experiment.definition import ModelMaker, experiment_with
from fastae.experiment.losses import Elements
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder, new_run
from fastae.training.clock import Clock
from fastae.training.distributed import joined, launched
from fastae.training.failures import explain
from fastae.training.observers.callback import Callback, OnLog
from fastae.training.observers.display import Display, Result
from fastae.training.observers.files import Checkpoints, MetricsFile, TensorBoard
from fastae.training.observers.observer import Observer
from fastae.training.observers.profile import Profile
from fastae.training.observers.usage import Usage
from fastae.training.session import Session, open_session
from fastae.training.signals import StopSignals
from fastae.training.trainer import Trainer
from fastae.utils.arguments import require_type
from fastae.utils.console import log, quieted, size
from fastae.utils.environment import command
from fastae.utils.paths import shell_word


def train(
    config: TrainConfig,
    *,
    model: ModelMaker | None = None,
    losses: Mapping[str, Elements] | None = None,
    on_log: OnLog | None = None,
    quiet: bool = False,
) -> Path:
    """Trains a new run as `config` says; returns the run's folder.

    Args:
        config: the settings.
        model: makes a model of your own, which maps images (N, 3, S, S) in [0, 1] to the same shape. It is
            called several times, once on PyTorch's meta device. Default: the article's autoencoder.
        losses: name -> function of (reconstruction, images) that returns the elements of a loss of your own,
            as `fastae.experiment.losses.losses_with` describes it. `config.loss` may then be one of them.
        on_log: is called with a `LogEntry` at each log step and evaluation. An exception ends the run.
        quiet: log nothing.

    Raises:
        FastaeError: a user's mistake, such as a model that returns another shape.
        RunFailure: the run cannot continue.
        Stopped: a signal has stopped the run.
    """
    require_type(config, "config", TrainConfig)
    ranks, experiment = launched(), experiment_with(model, losses)
    out = Path(config.out) if config.out else None
    with quieted(quiet), new_run(out, config.loss) if ranks.is_main else nullcontext() as mine:
        path = Path(ranks.broadcast("run", str(mine.path) if mine else ""))
        session = open_session(config, ranks, experiment=experiment)
        train_in(session, RunFolder(path), on_log=on_log)
    return path


def train_in(
    session: Session, run: RunFolder, newest: Checkpoint | None = None, *, on_log: OnLog | None = None
) -> None:
    """Trains the run of a session to its end: a new one, or one that continues from a checkpoint."""
    # Outermost: a signal, such as torchrun sends to the other ranks, must not end code that saves or reports.
    with StopSignals() as stops, joined(session.ranks, session.hardware.device):
        extra = [Callback(on_log)] if on_log else []
        try:
            with open_trainer(session, session.config, run, stops, newest, extra=extra) as trainer:
                while trainer.advance():
                    pass
            del trainer  # it refers to objects of DDP, which must be freed before the ranks part
        finally:
            session.trained.objectives.clear()
    if session.ranks.is_main:
        with suppress(OSError):  # the run is complete, even if its folder cannot be listed
            log_folder(run)


@contextmanager
def open_trainer(
    session: Session,
    config: TrainConfig,
    run: RunFolder,
    stops: StopSignals,
    newest: Checkpoint | None = None,
    *,
    extra: Sequence[Observer] = (),
    bar: bool = True,
) -> Iterator[Trainer]:
    """Makes a run ready to train. The caller has locked its folder.

    Args:
        session: the session in which the run is trained.
        config: the run's settings.
        run: the run's folder.
        stops: asks for an early, orderly end.
        newest: the checkpoint that the run continues from; None for a new run.
        extra: further observers.
        bar: whether a terminal shows a bar of its own for the run.

    Raises:
        RunFailure, Stopped: the run ended early, here or in the block; the message says how to resume it.
    """
    try:
        with ExitStack() as stack:
            loader = session.loader.reseeded(config.seed)
            step = session.new_step(config, loader.make_batch)
            monitor = stack.enter_context(open_monitor(session, config, run))
            if session.hardware.compiled:
                monitor.enter(Phase.COMPILE)
            started = time.monotonic()
            capture = step.capture(loader.example()) if session.ranks.size == 1 else ""
            seconds = time.monotonic() - started
            start, spent = (newest.iteration, newest.seconds) if newest else (0, 0.0)
            if newest:
                step.restore(newest.training)
            # Read from config.json: a session that was killed before it saved is in no checkpoint.
            resumed = (*run.read_description().resumed, start) if newest else ()
            description = session.describe(config, capture, resumed)
            log_beginning(run, description, newest)
            if capture:
                log(f"          prepared in {seconds:.0f} s, in which cuDNN chose its kernels")
            if session.ranks.is_main:
                run.begin(description, session.folder.manifest, session.skipped)
            session.replaced.runs.append(run)
            stack.callback(session.replaced.runs.remove, run)
            observers: list[Observer] = []
            if session.ranks.is_main:
                display = Display(config, start=start, on_cpu=not session.info(config).on_gpu, bar=bar)
                observers = open_observers(stack, session, config, run, monitor, display, start)
                observers += extra
            trainer = Trainer(
                session,
                description,
                run,
                step=step,
                loader=loader,
                clock=Clock(
                    session.hardware.device,
                    config.batch_size,
                    longest=min(config.log_every, config.iterations),
                    start=start,
                    spent=spent,
                ),
                observers=observers,
                stops=stops,
            )
            stack.callback(trainer.end_batches)
            yield trainer
    except Exception as error:
        explained = explain(error, session, run, stops=stops)
        raise explained from explained.__cause__


def open_observers(
    stack: ExitStack,
    session: Session,
    config: TrainConfig,
    run: RunFolder,
    monitor: Monitor,
    display: Display,
    start: int,
) -> list[Observer]:
    """Opens what records a run, in the order in which each event reaches them.

    Args:
        stack: closes the observers, the last first.
        session: the session in which the run is trained.
        config: the run's settings.
        run: the run's folder.
        monitor: samples the use of the machine.
        display: shows the run.
        start: the iteration that the run continues from; 0 for a new run.
    """
    device = session.hardware.device
    metrics = stack.enter_context(MetricsFile(run, start))
    curves = stack.enter_context(TensorBoard(run, config, start, usage_means=monitor.means))
    curves.writer.settings(start, config.as_dict())
    checkpoints = stack.enter_context(Checkpoints(run, config, curves.writer))
    stack.enter_context(display)
    profile = stack.enter_context(Profile(run.path, config.profile))
    result = Result(run, session.info(config), device, start=start)
    # The monitor comes before TensorBoard, which asks it for the figures of the same window.
    return [Usage(monitor), metrics, curves, display, profile, checkpoints, result]


def open_monitor(session: Session, config: TrainConfig, run: RunFolder) -> Monitor:
    """Makes the monitor of a run. If there are several ranks, only the main one samples."""
    ranks = session.ranks
    hz = config.gpu_sample_hz if ranks.is_main else 0
    return Monitor(run.path, hz, local_gpus(session.hardware.device, ranks.size), info=session.info(config))


def log_beginning(run: RunFolder, description: RunDescription, newest: Checkpoint | None) -> None:
    """Logs what a run is made with, and what has changed since its checkpoint."""
    if newest:
        for line in description.differences(newest.description):
            log(f"differs   {line}")
    log(f"run       {run.path}")
    log(f"device    {description.device}")
    log(f"step      {description.step}")


def log_folder(run: RunFolder) -> None:
    """Logs the folder, the newest picture and the command that shows the curves."""
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.is_symlink()]
    total = sum(path.stat().st_size for path in files)
    kept = sum(path.stat().st_size for path in files if path.parent == run.checkpoints)
    log(f"run       {run.path} ({size(total)})", "bold")
    if kept:
        log(
            f"          {size(kept)} of it is the checkpoint, needed only to train longer (--keep 0 drops it)"
        )
    if picture := max(run.samples.glob("*.png"), default=None):
        log(f"picture   {picture}", "bold")
    log(f"curves    {command('tensorboard')} --logdir {shell_word(run.path.parent)}", "bold")
