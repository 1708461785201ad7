"""Trains a run, one iteration per call: batch, step, metrics, evaluation, checkpoint.

Several trainers may take turns in one process. Iterations are counted from 1: the metrics of iteration i are
those of the batch that the i-th step trained on. On a GPU the loop stays a few steps ahead of the device and
never waits until the device is idle: what a log step measures is copied in the stream, and read at the next
log step.
"""

from __future__ import annotations

import math
import signal
import time
from dataclasses import replace

import torch
from torch import Tensor

from fastae.data.files.recovery import DecoderError
from fastae.data.loaders.loader import Loader
from fastae.device.cards import peak_flops
from fastae.device.memory import peak_memory, total_memory
from fastae.errors import FastaeError, NotFinite, Stopped, TrainingFault
from fastae.experiment.flops import rate_text, training_flops
from fastae.monitor.recording import Phase
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder
from fastae.training.evaluate import evaluate
from fastae.training.recorder import Recorder
from fastae.training.run_ahead import PendingWindows, StepQueue
from fastae.training.session import Session
from fastae.training.signals import StopSignals
from fastae.training.step import TrainingStep
from fastae.training.step_timer import StepTimer, Window
from fastae.utils.console import log, printable
from fastae.utils.limits import peak_bytes

WARM_UP = 10
"""The number of iterations after which the speed is representative: cuDNN has chosen, caches are warm."""

AGREE_EVERY = 10
"""The iterations between two moments at which all ranks agree on whether to stop: each waits for all."""


def is_log_step(iteration: int, every: int) -> bool:
    """Returns whether to log an iteration: every `every`-th and, to show the speed early, 1, 2, 5, 10, ..."""
    if iteration % every == 0:
        return True
    return iteration < every and iteration / 10 ** (len(str(iteration)) - 1) in (1, 2, 5)


class Clock:
    """The time of a run's training in all sessions, in seconds. If runs take turns, it is the run's share.

    Args:
        spent: the time in earlier sessions.
        at_once: how many runs take turns in this session.
    """

    def __init__(self, spent: float, at_once: int) -> None:
        self._spent = spent
        self._at_once = at_once
        self.begin()

    def begin(self) -> None:
        """Begins the training of this session."""
        self._began = time.monotonic()

    def now(self) -> float:
        """Returns the time until now."""
        return self.after(time.monotonic() - self._began)

    def after(self, seconds: float) -> float:
        """Returns the time after this many seconds of this session's training."""
        return self._spent + seconds / self._at_once


class Trainer:
    """Trains a run: call `advance` until it returns False.

    Args:
        session: what the run shares with others.
        description: what the run is made with.
        run: the run's folder.
        step: the training step, with the weights that the run continues from.
        loader: the batches, with the run's seed.
        recorder: where the results go; None on all ranks but the main one.
        stops: asks for an early, orderly end.
        start: the iteration that the run continues from.
        clock: the time of training.
    """

    def __init__(
        self,
        session: Session,
        description: RunDescription,
        run: RunFolder,
        *,
        step: TrainingStep,
        loader: Loader,
        recorder: Recorder | None,
        stops: StopSignals,
        start: int,
        clock: Clock,
    ) -> None:
        self.iteration = self._start = start
        self._config = config = description.config
        self._session = session
        self._ranks = session.ranks
        self._step = step
        self._loader = loader
        self._batches = loader.inputs(start)
        self._run = run
        self._recorder = recorder
        self._stops = stops
        self._timer = StepTimer(step.device, config.batch_size)
        self._queue = StepQueue(step.device)
        self._pending = PendingWindows(step.device, min(config.log_every, config.iterations), start)
        self._windows: list[Window] = []
        self._saved_at = time.monotonic()
        self._clock = clock

    def advance(self) -> bool:
        """Trains one iteration. Returns False if it was the last: the iterations or the minutes are over.

        The last one logs the run's result, and returns when the last checkpoint is on the disk.

        Raises:
            TrainingFault: training cannot continue.
            Stopped: a signal has stopped the run, which is saved.
            OSError: a file cannot be written.
        """
        if self.iteration == self._start:
            self._begin()
        self.iteration += 1
        self._timer.fetch()
        inputs = self._next_inputs()
        self._timer.data_ready()
        loss, error = self._step(*inputs)
        self._queue.add(self._timer.step_done())
        self._pending.add(loss)
        if self._recorder:
            self._recorder.advance(self.iteration, self._fraction_done())
        over, stopped = self._ending()
        evaluates = over or self.iteration % self._config.eval_every == 0
        if evaluates or is_log_step(self.iteration, self._config.log_every):
            self._log(loss, error)
            if evaluates:
                self._evaluate()
            self._enter_phase()
            self._timer.begin()
        elif self.iteration == self._start + 1:
            self._timer.begin()  # the first step of a resumed run compiles, so it is not counted
        if over or stopped or self._checkpoint_is_due():
            self._save(final=over)
            if not over and not stopped:
                self._enter_phase()
        if over:
            self._log_result()
        if over or stopped:
            self.finish()
        if stopped:
            caught = self._stops.caught or signal.SIGTERM  # None if another rank caught it
            raise Stopped(caught, f"stopped by {caught.name} at iteration {self.iteration:,}")
        return not over

    def finish(self) -> None:
        """Returns when the last checkpoint is on the disk."""
        if self._recorder:
            self._recorder.wait()

    def _log_result(self) -> None:
        """Logs the result of a finished run: held-out error, speed without the first step, and memory."""
        if not self._recorder:
            return
        self._recorder.end_display()
        ends = {iteration: self._run.logged(iteration).held_out for iteration in (0, self.iteration)}
        indices = ", ".join(
            f"{index:,.0f} at iteration {iteration:,}"
            for iteration, index in ends.items()
            if index is not None
        )
        log(f"\nheld-out loss_index {indices}", "bold")
        first_step, windows = "", self._windows
        if is_log_step(self._start + 1, self._config.log_every):  # else it is not counted at all
            first_step = f"first step {windows[0].seconds:.1f} s, "
            windows = windows[1:] or windows
        seconds = sum(window.seconds for window in windows)
        images = self._config.batch_size * sum(window.iterations for window in windows)
        wait = sum(window.data_wait * window.seconds for window in windows) / seconds
        arithmetic = self._arithmetic(images / seconds)
        log(f"{images / seconds:,.1f} images/s, data wait {wait:.2%}, {first_step}{arithmetic}")
        memory = f"peak memory {peak_bytes() / 2**30:.1f} GiB"
        if peak := peak_memory():
            sizes = (*peak, total_memory(self._step.device))
            memory += "; on the GPU {:.1f} GiB used, {:.1f} reserved of {:.1f}".format(
                *(n / 2**30 for n in sizes)
            )
        log(memory)

    def _arithmetic(self, images_per_second: float) -> str:
        """Returns, in words, the FLOP/s at this rate and, if known, their share of the devices' peak."""
        flops = images_per_second * training_flops(self._config.image_size, self._config.latent)
        peak = peak_flops(self._step.device, self._session.hardware.precision)
        share = f" ({flops / self._ranks.size / peak:.1%} of the peak)" if peak else ""
        return f"{rate_text(flops)}{share}"

    def _begin(self) -> None:
        """Prepares this session's first iteration. A new run is evaluated before."""
        self._step.model.train()
        if self.iteration == 0:
            self._evaluate()
        self._enter_phase()
        self._clock.begin()
        self._timer.begin()

    def _next_inputs(self) -> tuple[Tensor, ...]:
        """Returns the inputs of the next step. Raises TrainingFault if the loader cannot continue."""
        try:
            return next(self._batches)
        except DecoderError as error:
            what = f"the loader failed at iteration {self.iteration:,}: {printable(str(error))}"
            raise TrainingFault(what) from None
        except FastaeError as error:
            raise TrainingFault(str(error)) from None

    def _fraction_done(self) -> float:
        """Returns the share of the run that is done, by iterations or by minutes, whichever is larger."""
        by_time = self._clock.now() / (60 * self._config.minutes) if self._config.minutes else 0.0
        return min(1.0, max(self.iteration / self._config.iterations, by_time))

    def _ending(self) -> tuple[bool, bool]:
        """Returns whether the run is over, and whether a signal stops it: the same on all ranks."""
        last = self.iteration == self._config.iterations
        over = self._config.ended_by(self.iteration, self._clock.now()) is not None
        stopped = self._stops.caught is not None
        if self._ranks.size > 1:
            if self.iteration % AGREE_EVERY and not last:
                return False, False
            over, stopped = self._ranks.any(over, stopped, device=self._step.device)
        return over, stopped and not over  # a signal after the end stops the process, not the run

    def _enter_phase(self) -> None:
        """Begins the phase of the next iteration, for the utilisation report."""
        done = self.iteration - self._start
        compiling = done == 0 and self._session.hardware.compiled
        if self._recorder:
            self._recorder.phase(
                Phase.COMPILE if compiling else Phase.WARM_UP if done < WARM_UP else Phase.TRAIN
            )

    def _log(self, loss: Tensor, error: Tensor) -> None:
        """Closes this window, and records the ones before it. On a CPU and in the warm-up it records all."""
        last = self._ranks.mean(torch.stack([loss, error, self._step.gradient_norm()]))
        self._pending.close(last, self._timer.split(), self._queue.take_wait())
        runs_ahead = self._step.device.type == "cuda" and self.iteration - self._start > WARM_UP
        self._record(keep_last=int(runs_ahead))

    def _record(self, keep_last: int = 0) -> None:
        """Records the closed windows without the last `keep_last`.

        Raises NotFinite if a loss is not finite.
        """
        for metrics in self._pending.read(keep_last):
            window, iteration = metrics.window, metrics.iteration
            self._check_finite(iteration - window.iterations + 1, metrics.losses)
            self._windows.append(window)
            remaining = (self._config.iterations - iteration) * window.seconds / window.iterations
            if self._config.minutes:
                remaining = max(0.0, min(remaining, 60 * self._config.minutes - self._clock.now()))
            if self._recorder:
                self._recorder.log_step(metrics, remaining)

    def _check_finite(self, first: int, losses: list[float]) -> None:
        """Checks the losses from the iteration `first` on.

        Raises NotFinite if a loss is not finite, after the iteration's images are noted in nan.txt.
        """
        iteration = next((i for i, loss in enumerate(losses, first) if not math.isfinite(loss)), None)
        if iteration is None:
            return
        sampler = replace(self._loader.sampler, part=0, parts=1)
        train = self._session.folder.train
        self._run.note_non_finite(iteration, [train[index] for index in sampler.at(iteration - 1).indices])
        raise NotFinite(
            f"the loss is not finite at iteration {iteration:,} (its images: {self._run.non_finite_file})"
        )

    def _evaluate(self) -> None:
        """Evaluates on the held-out images, and records the result. Only the main rank does it."""
        if self._recorder:
            self._record()
            self._recorder.phase(Phase.EVAL)
            precision = self._session.hardware.precision
            found = evaluate(self._step.model, self._session.held_out, self._config.loss, precision=precision)
            self._recorder.log_evaluation(self.iteration, found)

    def _checkpoint_is_due(self) -> bool:
        """Returns whether enough iterations, or enough time, have passed since the last checkpoint."""
        every = self._config.checkpoint_every
        by_time = time.monotonic() - self._saved_at >= 60 * self._config.checkpoint_minutes
        return by_time or (every is not None and self.iteration % every == 0)

    def _save(self, final: bool) -> None:
        """Starts to write a checkpoint. Raises NotFinite if a loss before it was infinite or NaN."""
        self._record()
        if self._recorder:
            self._recorder.phase(Phase.SAVE)
        self._check_finite(self._pending.first, self._pending.open_losses())
        if self._recorder:
            # The windows contain the steps and their wait for data, but no start, evaluation or saving.
            seconds = self._clock.after(sum(window.seconds for window in self._windows))
            training = self._step.state()
            self._recorder.save(self.iteration, seconds=seconds, training=training, final=final)
            self._timer.exclude()
        self._saved_at = time.monotonic()
