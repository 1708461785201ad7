"""Where instruments that watch the GPU path touch the project. These names stay when others change."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastae.config import TrainConfig
from fastae.data.loaders import host
from fastae.runs.folder import RunFolder, new_run
from fastae.sweep.plan import SweepConfig
from fastae.sweep.sweep import train_sweep
from fastae.training import session
from fastae.training.resume import reopen
from fastae.training.runner import open_trainer
from fastae.training.session import open_session
from fastae.training.signals import StopSignals
from fastae.training.step.step import TrainingStep
from fastae.training.trainer import Trainer
from scripts.hollow_gpu.driver import count_replays


def replay_counters(step: TrainingStep) -> list[Tensor]:
    """Returns the tensors that a replay of a step counts up, by which a capture verifies itself."""
    return [step.optimizer.step_count]


def count_replays_everywhere() -> None:
    """Makes each replay count up the counters of every step that is made later, and zeroes its moments.

    The kernel that would zero them does nothing there, and a checkpoint must not hold what was in the memory.
    """

    def counted(capture: Callable) -> Callable:
        def call(step: TrainingStep, example: Any) -> str:
            count_replays(replay_counters(step))
            for moment in (*step.optimizer.mean.values(), *step.optimizer.square.values()):
                ctypes.memset(moment.data_ptr(), 0, moment.nbytes)  # the hollow GPU's memory is the host's
            return capture(step, example)

        return call

    around_capture(counted)


@contextmanager
def open_run(config: TrainConfig, path: Path, resumed: bool = False) -> Iterator[Trainer]:
    """Yields a run that is ready to train, new or resumed in the folder `path`."""
    opened = open_session(config)
    with RunFolder(path).lock() if resumed else new_run(path, config.loss), StopSignals() as stops:
        run = RunFolder(path)
        newest = reopen(run, config) if resumed else None
        with open_trainer(opened, config, run, stops, newest) as trainer:
            trainer.finish = lambda: None  # type: ignore[attr-defined]  # `advance` waits for the last save
            yield trainer


def sweep(config: TrainConfig, losses: Sequence[str], path: Path) -> None:
    """Trains the losses one after the other in one process. Raises RuntimeError if one fails."""
    result = train_sweep(SweepConfig(config, losses=losses), path)
    if result.failed:
        raise RuntimeError(str(result.failed))


def around_iteration(wrap: Callable[[Callable], Callable]) -> None:
    """Replaces the function that trains one iteration."""
    Trainer.advance = wrap(Trainer.advance)  # type: ignore[method-assign]


def around_capture(wrap: Callable[[Callable], Callable]) -> None:
    """Replaces the function that captures a step (step, example) and returns what it did in words."""
    TrainingStep.capture = wrap(TrainingStep.capture)  # type: ignore[method-assign]


def around_gather(wrap: Callable[[Callable], Callable]) -> None:
    """Replaces the function that gathers a batch in a thread of the host loader."""
    host.gather = wrap(host.gather)


def set_decode_group(images: int) -> None:
    """Makes DALI decode so many images at once."""
    tuning = session.loader_tuning
    session.loader_tuning = lambda *given: replace(tuning(*given), decode_batch=images)
