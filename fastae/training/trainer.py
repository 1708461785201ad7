"""Trains a run, one iteration per call: batch, step, and the events that observers record.

Iterations are counted from 1: the metrics of iteration i are those of the batch that the i-th step trained
on.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum, auto

import torch
from torch import Tensor

from fastae.data.files.recovery import DecoderError
from fastae.data.loaders.batch_source import BatchSource
from fastae.errors import FastaeError, NotFinite, Stopped, TrainingFault
from fastae.monitor.loop_timer import WARM_UP
from fastae.monitor.recording import Phase
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder
from fastae.training.clock import Clock, Window
from fastae.training.evaluate import evaluate
from fastae.training.observers.observer import Observer
from fastae.training.session import Session
from fastae.training.signals import StopSignals
from fastae.training.step.step import TrainingStep
from fastae.utils.console import printable

AGREE_EVERY = 10
"""The iterations between two moments at which all ranks agree on whether to stop: each waits for all."""


def is_log_step(iteration: int, every: int) -> bool:
    """Returns whether to log an iteration: every `every`-th and, to show the speed early, 1, 2, 5, 10, ..."""
    if iteration % every == 0:
        return True
    return iteration < every and iteration / 10 ** (len(str(iteration)) - 1) in (1, 2, 5)


class End(Enum):
    """How a session of training ends."""

    COMPLETE = auto()
    """The iterations, or the minutes, are over."""

    STOPPED = auto()
    """A signal stops the run, which can be resumed."""


class Trainer:
    """Trains a run: call `advance` until it returns False.

    Args:
        session: what the run shares with others.
        description: what the run is made with.
        run: the run's folder.
        step: the training step, with the weights that the run continues from.
        loader: the batches, with the run's seed.
        clock: the clock of the loop, which knows the iteration that the run continues from.
        observers: what is done with the results; nothing on all ranks but the main one.
        stops: asks for an early, orderly end.
    """

    def __init__(
        self,
        session: Session,
        description: RunDescription,
        run: RunFolder,
        *,
        step: TrainingStep,
        loader: BatchSource,
        clock: Clock,
        observers: Sequence[Observer],
        stops: StopSignals,
    ) -> None:
        self.iteration = self._start = clock.first - 1
        self._session = session
        self._description = description
        self._config = description.config
        self._run = run
        self._step = step
        self._loader = loader
        self._batches: Iterator[tuple[Tensor, ...]] = loader.inputs(self.iteration)
        self._clock = clock
        self._observers = observers
        self._stops = stops
        self._saved_at = time.monotonic()

    def advance(self) -> bool:
        """Trains one iteration. Returns False if it was the last: the iterations or the minutes are over.

        The last call returns when the last checkpoint is on the disk.

        Raises:
            TrainingFault: training cannot continue.
            Stopped: a signal has stopped the run, which is saved.
            OSError: a file cannot be written.
        """
        if self.iteration == self._start:
            self._begin()
        loss, error = self._train()
        end = self._ending()
        evaluates = end is End.COMPLETE or self.iteration % self._config.eval_every == 0
        logs = evaluates or is_log_step(self.iteration, self._config.log_every)
        if logs:
            self._log(loss, error)
        if evaluates:
            self._evaluate()
        if end:
            return self._close(end)
        if logs or self.iteration - self._start in (1, WARM_UP):
            self._enter_phase()
            self._clock.skip()  # so that neither a first step, which compiles, nor the warm-up is timed
        if self._checkpoint_is_due():
            self._save(final=False)
            self._enter_phase()
        return True

    def end_batches(self) -> None:
        """Ends the loader's threads and pipelines, also if the caller keeps the trainer."""
        self._batches = iter(())

    def _begin(self) -> None:
        """Prepares this session's first iteration. A new run is evaluated before."""
        if self.iteration == 0:
            self._evaluate()
        self._enter_phase()
        self._clock.begin()

    def _train(self) -> tuple[Tensor, Tensor]:
        """Trains on the next batch. Returns its loss and squared error, as TrainingStep does."""
        self.iteration += 1
        self._clock.fetch()
        inputs = self._next_inputs()
        self._clock.data_ready()
        loss, error = self._step(*inputs)
        self._clock.step_done(loss)
        done = self._share_done()
        for observer in self._observers:
            observer.step(self.iteration, done)
        return loss, error

    def _next_inputs(self) -> tuple[Tensor, ...]:
        """Returns the inputs of the next step. Raises TrainingFault if the loader cannot continue."""
        try:
            return next(self._batches)
        except DecoderError as error:
            what = f"the loader failed at iteration {self.iteration:,}: {printable(str(error))}"
            raise TrainingFault(what) from None
        except FastaeError as error:
            raise TrainingFault(str(error)) from None

    def _share_done(self) -> float:
        """Returns the share of the run that is done, by iterations or by minutes, whichever is larger."""
        by_time = self._clock.elapsed() / (60 * self._config.minutes) if self._config.minutes else 0.0
        return min(1.0, max(self.iteration / self._config.iterations, by_time))

    def _ending(self) -> End | None:
        """Returns how the session ends after this iteration, if it does: the same on all ranks."""
        ranks = self._session.ranks
        complete = self._config.ended_by(self.iteration, self._clock.elapsed()) is not None
        stopped = self._stops.caught is not None
        if ranks.size > 1:
            if self.iteration % AGREE_EVERY and self.iteration != self._config.iterations:
                return None
            self._clock.drain()  # else this wait for the device would be in no figure
            complete, stopped = ranks.any(complete, stopped, device=self._step.device)
        if complete:
            return End.COMPLETE  # a signal after the end stops the process, not the run
        return End.STOPPED if stopped else None

    def _close(self, end: End) -> bool:
        """Saves the run and returns False. Raises Stopped if a signal stops it."""
        self._save(final=end is End.COMPLETE)
        for observer in self._observers:
            observer.finish(end is End.COMPLETE)
        if end is End.STOPPED:
            caught = self._stops.caught or signal.SIGTERM  # None if another rank caught it
            raise Stopped(caught, f"stopped by {caught.name} at iteration {self.iteration:,}")
        return False

    def _enter_phase(self) -> None:
        """Begins the phase of the next iteration."""
        done = self.iteration - self._start
        if done == 0 and self._session.hardware.compiled:
            self._tell_phase(Phase.COMPILE)
        else:
            self._tell_phase(Phase.WARM_UP if done < WARM_UP else Phase.TRAIN)

    def _tell_phase(self, phase: Phase) -> None:
        for observer in self._observers:
            observer.phase(phase)

    def _log(self, loss: Tensor, error: Tensor) -> None:
        """Closes this window, and reports the ones before it. On a CPU and in the warm-up it reports all."""
        last = torch.stack([loss, error, self._step.gradient_norm()])
        self._clock.close(last, self._session.ranks.mean)
        runs_ahead = self._step.device.type == "cuda" and self.iteration - self._start > WARM_UP
        self._report(keep_last=int(runs_ahead))

    def _report(self, keep_last: int = 0) -> None:
        """Tells the observers of the closed windows without the last `keep_last`.

        Raises NotFinite if a loss is not finite.
        """
        for window in self._clock.read(keep_last):
            self._check_finite(window.iteration - len(window.losses) + 1, window.losses)
            timed = replace(window, remaining=self._remaining(window))
            for observer in self._observers:
                observer.window(timed)

    def _remaining(self, window: Window) -> float:
        """Returns the seconds until the run ends, at the speed of a window; infinity if that is not known."""
        left = self._config.iterations - window.iteration
        seconds = left * self._config.batch_size / window.images_per_second
        if window.iteration == self._start + 1:
            seconds = math.inf  # the first step compiles and fills caches, so its speed says nothing
        if self._config.minutes:
            return max(0.0, min(seconds, 60 * self._config.minutes - self._clock.elapsed()))
        return seconds

    def _check_finite(self, first: int, losses: Sequence[float]) -> None:
        """Checks the losses from the iteration `first` on.

        Raises NotFinite if a loss is not finite. The main rank then notes the iteration's images in nan.txt.
        """
        iteration = next((i for i, loss in enumerate(losses, first) if not math.isfinite(loss)), None)
        if iteration is None:
            return
        if self._observers:
            train = self._session.folder.train
            images = [train[index] for index in self._loader.sampler.indices(iteration - 1)]
            self._run.note_non_finite(iteration, images)
        raise NotFinite(
            f"the loss is not finite at iteration {iteration:,} (its images: {self._run.non_finite_file})"
        )

    def _evaluate(self) -> None:
        """Evaluates on the held-out images. Only the main rank, which has observers, does it."""
        if not self._observers:
            return
        self._report()
        self._tell_phase(Phase.EVAL)
        evaluation = evaluate(
            self._step.model,
            self._session.held_out,
            self._session.experiment.loss(self._config.loss),
            precision=self._step.precision,
            iteration=self.iteration,
        )
        for observer in self._observers:
            observer.evaluation(evaluation)

    def _checkpoint_is_due(self) -> bool:
        """Returns whether enough iterations, or enough time, have passed since the last checkpoint."""
        every = self._config.checkpoint_every
        by_time = time.monotonic() - self._saved_at >= 60 * self._config.checkpoint_minutes
        return by_time or (every is not None and self.iteration % every == 0)

    def _save(self, final: bool) -> None:
        """Saves a checkpoint. Raises NotFinite if a loss before it was infinite or NaN."""
        self._report()
        self._tell_phase(Phase.SAVE)
        if self._observers:
            self._check_finite(self._clock.first, self._clock.open_losses())
        for observer in self._observers:
            observer.flush()
        checkpoint = Checkpoint(
            self.iteration,
            self._step.state(),
            description=self._description,
            seconds=self._clock.elapsed(),
        )
        for observer in self._observers:
            observer.save(checkpoint, final)
        self._clock.exclude()
        self._saved_at = time.monotonic()
