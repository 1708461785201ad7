"""The training loop: iteration -> batch -> step -> meters -> board, with evaluations and checkpoints.

The loop waits for the device at log steps only. Iterations are counted from 1, when they are done: the
scalars at iteration i are those of the batch that the i-th step trained on.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastae.config import TrainConfig
from fastae.data.loader import Loader
from fastae.data.recovery import DecoderError
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.losses import loss_index
from fastae.monitor.monitor import Monitor
from fastae.monitor.profiler import StepProfiler
from fastae.monitor.recording import Phase
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.saver import NotFinite, Saver
from fastae.runs.tensorboard import Board
from fastae.training.evaluate import evaluate, reconstruct
from fastae.training.progress import Display, Figures
from fastae.training.session import Session
from fastae.training.signals import StopSignals
from fastae.training.step import TrainingStep
from fastae.training.step_timer import StepClock, Window
from fastae.utils.console import duration, printable, say
from fastae.utils.memory import peak_bytes
from fastae.utils.pictures import sample_sheet, save_png

SAMPLE_IMAGES = 16
SETTLED = 10
"""After this many iterations the run's length is projected; the first, which compiles, not counted."""

LONG_RUN = 15 * 60
"""Seconds from which a projection is worth a line."""

AGREE_EVERY = 10
"""Iterations after which several ranks agree on whether to stop: each time costs a wait for all."""

SKIPPED_IN_A_ROW = 100
"""With --on-nan skip, so many steps without a finite one are a run that is lost."""


def how_to_go_on(run: RunFolder) -> str:
    """What is kept of a run that ended early, in words."""
    iteration = checkpoint.latest(run.checkpoints)
    kept = "nothing was saved yet" if iteration is None else f"iteration {iteration:,} is saved"
    return f"{kept}; fastae train --resume {run.path}"


class Training:
    """The loop of one run; a context manager, since it holds the run's open files and threads."""

    def __init__(
        self,
        session: Session,
        config: TrainConfig,
        run: RunFolder,
        description: dict[str, Any],
        monitor: Monitor,
        step: TrainingStep,
        loader: Loader,
        start: int,
        display: Display,
        stops: StopSignals,
    ) -> None:
        self.session = session
        self.ranks = session.ranks
        self.config = config
        self.run = run
        self.description = description
        self.monitor = monitor
        self.step = step
        self.loader = loader
        self.start = start
        self.display = display
        self.stops = stops
        self.clock = StepClock(step.device, config.batch_size)
        self.windows: list[Window] = []
        self.held_out_index: list[tuple[int, float]] = []
        # The objectives since the last log step: read together there, since reading waits for the device.
        self.objectives = torch.zeros(max(config.log_every, SETTLED), device=step.device)
        self.logged = self.checked = self.start
        self.skipped_in_a_row = 0
        self.saved_at = time.monotonic()
        self.signal_noticed = False
        self.data_wait = 0.0  # seconds of the host in `next()` since the last log step
        self.profiler = StepProfiler(config.profile if self.ranks.first else 0, run.path)

    def __enter__(self) -> Training:
        with ExitStack() as opened:
            if self.ranks.first:
                self.board = opened.enter_context(Board(self.run.path))
                self.saver = opened.enter_context(Saver(self.run.checkpoints, self.config.keep))
                self.board.settings(self.start, self.description)
            opened.enter_context(self.display.begin(self.start, self.config.iterations))
            opened.enter_context(self.profiler)
            self.opened = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.opened.__exit__(*exception)

    def loop(self) -> float | None:
        """Trains until the last iteration, or the time is up, or a signal comes.

        Returns the last held-out loss_index, on the rank that evaluates.
        """
        config = self.config
        self.step.model.train()
        batches = self.loader.inputs(self.start)
        if self.start == 0:
            self.look(0)
        started = time.monotonic()
        self.monitor.enter(self.phase(self.start))
        self.clock.begin()
        for iteration in range(self.start + 1, config.iterations + 1):
            asked = time.perf_counter()
            inputs = self.next_of(batches, iteration)
            self.data_wait += time.perf_counter() - asked
            self.clock.data_ready()
            objective, error = self.step(*inputs)
            self.clock.step_done()
            self.profile(iteration)
            self.objectives[iteration - self.logged - 1].copy_(objective)
            self.display.advance()
            elapsed = time.monotonic() - started
            over, stopped = self.ending(iteration, elapsed)
            looks = over or iteration % config.eval_every == 0
            if looks or iteration in (1, SETTLED) or iteration % config.log_every == 0:
                self.log(iteration, elapsed, objective, error)
                if looks:
                    self.look(iteration)
                self.monitor.enter(self.phase(iteration))
                self.clock.begin()
                self.data_wait = 0.0
            elif iteration == self.start + 1:
                self.data_wait = 0.0
                self.clock.begin()  # it warmed up and compiled: no figure of a run that goes on
            if self.ranks.first and self.saver.idle:
                self.settle()  # a save that failed is told now, not at the next one
            if over or stopped or self.save_is_due(iteration):
                self.save(iteration)
            if stopped:
                self.stop(iteration)
            if over:
                break
        return self.finish()

    def next_of(self, batches: Iterator[tuple[Tensor, ...]], iteration: int) -> tuple[Tensor, ...]:
        """The inputs of the next step."""
        try:
            return next(batches)
        except DecoderError as error:
            what = f"the loader failed at iteration {iteration:,}: {printable(str(error))}"
            raise self.failure(what) from None
        except FastaeError as error:
            raise self.failure(str(error)) from None

    def profile(self, iteration: int) -> None:
        """--profile N: a trace of the first N steps after the warm-up."""
        if trace := self.profiler.step():
            say(f"profile   {trace}")
        if self.phase(iteration) is Phase.TRAIN:
            self.profiler.begin()

    def ending(self, iteration: int, elapsed: float) -> tuple[bool, bool]:
        """Whether the run is over, and whether a signal stops it; the same on all ranks."""
        last = iteration == self.config.iterations
        stopped = self.stops.due()
        over = last or elapsed >= 60 * (self.config.minutes or math.inf)
        if not self.ranks.alone:
            if iteration % AGREE_EVERY and not last:
                return False, False
            agreed = self.ranks.largest(2 * stopped + over, self.step.device)
            over, stopped = agreed % 2 == 1 or last, agreed >= 2
        return over and not stopped, stopped

    def phase(self, iteration: int) -> Phase:
        """What the GPU report calls the iterations that follow this one."""
        if iteration == self.start and self.session.compiled:
            return Phase.COMPILE
        return Phase.TRAIN if iteration - self.start >= SETTLED else Phase.WARM_UP

    def log(self, iteration: int, elapsed: float, objective: Tensor, error: Tensor) -> None:
        """Reads the device's figures, the one wait for it, and shows them."""
        config = self.config
        blocked = time.perf_counter()
        self.check_finite(iteration)  # the first to read from the device, and so the one that waits for it
        device_wait = time.perf_counter() - blocked
        self.logged = iteration
        loss, mean_error = self.ranks.mean(torch.stack([objective, error])).tolist()
        index = loss_index(mean_error)
        window = self.clock.close()
        self.windows.append(window)
        if not self.ranks.first:
            return
        images = window.iterations * config.batch_size
        self.monitor.record(images, window.seconds, self.data_wait, device_wait)
        trained = {f"loss/{config.loss}": loss, "loss_index/train": index} if math.isfinite(loss) else {}
        self.board.scalars(
            iteration,
            {
                **trained,
                "speed/images_per_second": window.images_per_second,
                "speed/data_wait_share": window.wait_share,
                "speed/step_ms_p50": 1e3 * window.step_p50,
                "speed/step_ms_p95": 1e3 * window.step_p95,
                **self.monitor.means(),
            },
        )
        remaining = (config.iterations - iteration) * window.seconds / window.iterations
        if config.minutes:
            remaining = max(0.0, min(remaining, 60 * config.minutes - elapsed))
        self.display.report(
            iteration, Figures(loss, index, window.images_per_second, window.wait_share, remaining)
        )
        if iteration == SETTLED and remaining > LONG_RUN:
            say(
                f"projected {config.iterations:,} iterations at this rate take "
                f"{duration(remaining)}; --iterations or --minutes make a shorter run"
            )

    def check_finite(self, iteration: int) -> None:
        """Reads the objectives not yet looked at. Raises RunFailure where one stops the run."""
        fresh = self.objectives[self.checked - self.logged : iteration - self.logged].tolist()
        for at, value in enumerate(fresh, start=self.checked + 1):
            self.skipped_in_a_row = 0 if math.isfinite(value) else self.skipped_in_a_row + 1
            if self.skipped_in_a_row:
                what = f"the loss is not finite at iteration {at:,} (its images: {self.list_images(at)})"
                if self.config.on_nan == "stop":
                    raise self.failure(f"{what}; a lower --lr, or --on-nan skip, may help")
                if self.skipped_in_a_row >= SKIPPED_IN_A_ROW:
                    raise self.failure(f"{what}, nor in the {SKIPPED_IN_A_ROW - 1} before it")
                say(f"{what}: its step is skipped")
        self.checked = iteration

    def list_images(self, iteration: int) -> Path:
        """Writes down which images the batch of this iteration held."""
        whole = replace(self.loader.order, part=0, parts=1)
        paths = [self.session.folder.train[index] for index in whole.plan(iteration - 1).indices]
        with self.run.non_finite.open("a") as file:
            file.writelines(f"{iteration}\t{printable(path)}\n" for path in paths)
        return self.run.non_finite

    def look(self, iteration: int) -> None:
        """Evaluates on the held-out images, and draws some of them."""
        if not self.ranks.first:
            return
        self.monitor.enter(Phase.EVAL)
        model, held_out = self.step.model, self.session.held_out
        precision = self.session.precision
        result = evaluate(model, held_out, self.config.loss, precision)
        self.held_out_index.append((iteration, result.loss_index))
        self.board.scalars(
            iteration,
            {
                f"loss/{self.config.loss}/held_out": result.loss,
                "loss_index/held_out": result.loss_index,
            },
        )
        originals = held_out[:: max(1, len(held_out) // SAMPLE_IMAGES)][:SAMPLE_IMAGES]
        picture = sample_sheet(originals, reconstruct(model, originals, precision), iteration)
        save_png(picture, self.run.sample(iteration))
        self.board.picture(iteration, "held_out/original_over_reconstruction", picture)
        say(f"iteration {iteration:,}: held-out loss_index {result.loss_index:,.0f}")

    def save_is_due(self, iteration: int) -> bool:
        """By the number of iterations, by time, and at once when a signal comes that has a grace."""
        if self.stops.caught and not self.signal_noticed:
            self.signal_noticed = True
            return True
        every = self.config.checkpoint_every
        by_time = time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        return by_time or (every is not None and iteration % every == 0)

    def save(self, iteration: int) -> None:
        """Starts writing a checkpoint. What TensorBoard shows up to it is on the disk before it is."""
        if not self.ranks.first:
            return
        self.check_finite(iteration)
        self.board.sync()
        run = {"config": self.config.as_dict(), "run": self.description}
        try:
            self.saver.save({**self.step.state(), "iteration": iteration, **run})
        except NotFinite:
            self.refuse_weights(iteration)
        self.saved_at = time.monotonic()

    def settle(self) -> None:
        """Returns when the last checkpoint is on the disk."""
        if self.ranks.first:
            try:
                self.saver.wait()
            except NotFinite:
                self.refuse_weights(self.checked)

    def refuse_weights(self, iteration: int) -> None:
        what = f"weights or Adam's moments not finite before iteration {iteration:,}"
        raise self.failure(f"{what}; a lower --lr may help")

    def failure(self, what: str) -> RunFailure:
        """The exception for a run that cannot go on; what is being saved is saved first."""
        if self.ranks.first:
            self.saver.finish()
        return RunFailure(f"{what}; {how_to_go_on(self.run)}")

    def stop(self, iteration: int) -> None:
        """Raises Stopped, all being saved."""
        self.settle()
        caught = self.stops.caught or signal.SIGTERM  # another rank's, where it was not this one's
        raise Stopped(
            caught,
            f"stopped by {caught.name} at iteration {iteration:,}, all is saved; "
            f"go on with: fastae train --resume {self.run.path}",
        )

    def finish(self) -> float | None:
        """The run in three lines. The first step, which warms up and compiles, is not in the rates."""
        self.settle()
        windows = self.windows[1:] or self.windows
        seconds = sum(window.seconds for window in windows)
        images = self.config.batch_size * sum(window.iterations for window in windows)
        wait = sum(window.wait_share * window.seconds for window in windows)
        if self.held_out_index:
            (began, first), (_, last) = self.held_out_index[0], self.held_out_index[-1]
            where = f"iteration {began:,}" if began else "the start"
            before = f"{first:,.0f} at {where}, " if len(self.held_out_index) > 1 else ""
            say(f"\nheld-out loss_index {before}{last:,.0f} at the end")
        say(
            f"{images / seconds:,.1f} images/s, data wait {wait / seconds:.2%}, first step "
            f"{self.windows[0].seconds:.1f} s, peak memory {peak_memory(self.step.device)}"
        )
        return self.held_out_index[-1][1] if self.held_out_index else None


def peak_memory(device: torch.device) -> str:
    """The most memory this process has held, on the host and on its GPU."""
    host = peak_bytes() / 2**30
    text = f"{host:.1f} GiB"
    if device.type == "cuda":
        text += f" host, {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU (PyTorch's)"
    return text
