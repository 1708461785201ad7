"""The training loop: iteration -> batch -> step -> meters -> board, with evaluations and checkpoints.

The loop waits for the device at log steps only. Iterations are counted from 1, when they are done: the
scalars at iteration i are those of the batch that the i-th step trained on.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastae import checkpoint
from fastae.board import Board
from fastae.cache import cache_folder
from fastae.config import TrainConfig
from fastae.console import duration, say
from fastae.data import Geometry, load_images, open_loader
from fastae.data.folder import count_faults
from fastae.data.source import open_source
from fastae.device import Precision, choose_compile, choose_device, choose_precision, describe, uuid
from fastae.environment import describe_environment
from fastae.evaluate import evaluate, reconstruct
from fastae.gpu.diagnosis import Setup
from fastae.gpu.sampler import COMPILE, EVAL, TRAIN, WARM_UP
from fastae.gpu.watch import Watch
from fastae.hostmemory import keep_freed_memory
from fastae.losses import loss_index
from fastae.meters import StepClock, Window
from fastae.model import AutoEncoder
from fastae.picture import pairs, save_png
from fastae.progress import TrainingProgress
from fastae.run import RunFolder, choose_run_folder
from fastae.step import TrainingStep

SAMPLE_IMAGES = 16
SETTLED = 10
"""After this many iterations the run's length is projected; the first, which compiles, not counted."""

LONG_RUN = 15 * 60
"""Seconds from which a projection is worth a line."""


def train(config: TrainConfig) -> Path:
    """Runs what `config` says; returns the run's folder. Raises FastaeError for a user's mistake."""
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    precision = choose_precision(device, config.amp)
    compiled, compile_note = choose_compile(
        config.compile, device, config.iterations * config.batch_size, config.minutes or math.inf
    )
    run = choose_run_folder(config)
    cache = Path(config.cache_dir) if config.cache_dir else cache_folder()
    folder, source = open_source(config.data, config.crop, cache)
    say(
        f"data      {source}: {len(folder.train):,} images to train on, "
        f"{len(folder.held_out):,} held out ({folder.split})"
    )
    if folder.skipped:
        say(f"left out  {count_faults(folder.skipped)}: named in {run.skipped}")
    geometry = Geometry(config.crop or folder.side, config.image_size, config.antialias)
    loader = open_loader(
        folder.train,
        batch_size=config.batch_size,
        device=device,
        seed=config.seed,
        augmentation=config.augmentation,
        geometry=geometry,
        threads=config.threads,
        kind=config.loader,
        compiled=compiled,
        cache=cache if config.cache else None,
        on_replaced=run.report_replaced,
    )
    say(f"loader    {loader.kind}" + (f" ({loader.note})" if loader.note else ""))
    evaluated = spread(folder.held_out, config.eval_images)
    held_out = load_images(evaluated, geometry, device, config.threads)
    step = TrainingStep(
        build_model(config, device),
        loss=config.loss,
        batch_shape=(config.batch_size, 3, config.image_size, config.image_size),
        lr=config.lr,
        precision=precision,
        compiled=compiled,
        images_of=loader.images,
    )
    setup = Setup(loader.kind, compiled, config.amp, config.batch_size)
    with Watch(run.path, config.gpu_sample_hz, uuid(device), setup) as watch:
        if compiled:
            watch.enter(COMPILE)
        graph_note = step.record(loader.example())
        layout = "channels-last" if config.channels_last else "channels-first"
        description = {
            "config": config.as_dict(),
            "data": {
                "source": source,
                "folder": folder.root,
                "train": len(folder.train),
                "held_out": len(folder.held_out),
                "split": folder.split,
                "evaluated_on": len(evaluated),
                "skipped": len(folder.skipped),
            },
            "loader": loader.kind,
            "device": describe(device),
            "step": ", ".join(filter(None, (precision.note, layout, compile_note, graph_note))),
            "environment": describe_environment(),
        }
        run.create(description, folder.skipped)
        say(f"device    {description['device']}: {description['step']}")
        say(f"run       {run.path}")
        with Board(run.path) as board:
            board.settings(description)
            training = Training(config, run, board, watch, step, held_out, precision, compiled)
            training.loop(loader.inputs())
    say(f"run       {run.path}")
    say(f"picture   {run.latest_sample()}")
    say(f"curves    tensorboard --logdir {run.path.parent}")
    return run.path


def build_model(config: TrainConfig, device: torch.device) -> AutoEncoder:
    """The model with the initial weights of `config.seed`, the same on every device."""
    torch.manual_seed(config.seed)
    model = AutoEncoder(config.image_size, config.latent)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def spread(paths: Sequence[str], number: int) -> list[str]:
    """At most `number` of these, evenly spaced, so that they stand for all of them."""
    stride = max(1, math.ceil(len(paths) / number))
    return list(paths[::stride])


class Training:
    """The loop of one run."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        board: Board,
        watch: Watch,
        step: TrainingStep,
        held_out: Tensor,
        precision: Precision,
        compiled: bool,
    ) -> None:
        self.config = config
        self.run = run
        self.board = board
        self.watch = watch
        self.step = step
        self.held_out = held_out
        self.precision = precision
        self.compiled = compiled
        self.clock = StepClock(step.device, config.batch_size)
        self.windows: list[Window] = []
        self.held_out_index: list[float] = []

    def loop(self, batches: Iterator[tuple[Tensor, ...]]) -> None:
        """Trains from iteration 1 to the last, or until the time is up."""
        config = self.config
        self.step.model.train()
        with TrainingProgress(config.iterations) as progress:
            self.look(0)
            started = time.monotonic()
            self.watch.enter(self.phase(0))
            self.clock.begin()
            for iteration in range(1, config.iterations + 1):
                inputs = next(batches)
                self.clock.data_ready()
                objective, error = self.step(*inputs)
                self.clock.step_done()
                progress.advance()
                elapsed = time.monotonic() - started
                last = iteration == config.iterations or elapsed >= 60 * (config.minutes or math.inf)
                looks = last or iteration % config.eval_every == 0
                if looks or iteration in (1, SETTLED) or iteration % config.log_every == 0:
                    self.log(iteration, elapsed, objective, error, progress)
                    if looks:
                        self.look(iteration)
                        self.save(iteration)
                    self.watch.enter(self.phase(iteration))
                    self.clock.begin()
                if last:
                    break
        self.summarise()

    def phase(self, iteration: int) -> str:
        """What the GPU report calls the iterations that follow this one."""
        if iteration == 0 and self.compiled:
            return COMPILE
        return TRAIN if iteration >= SETTLED else WARM_UP

    def log(
        self,
        iteration: int,
        elapsed: float,
        objective: Tensor,
        error: Tensor,
        progress: TrainingProgress,
    ) -> None:
        """Reads the device's figures, the one wait for it, and shows them."""
        loss, index = objective.item(), loss_index(error.item())
        window = self.clock.close()
        self.windows.append(window)
        self.watch.record(window.iterations * self.config.batch_size, window.seconds, window.wait_share)
        self.board.scalars(
            iteration,
            {
                f"loss/{self.config.loss}": loss,
                "loss_index/train": index,
                "speed/images_per_second": window.images_per_second,
                "speed/data_wait_share": window.wait_share,
                "speed/step_ms_p50": 1e3 * window.step_p50,
                "speed/step_ms_p95": 1e3 * window.step_p95,
                **self.watch.means(),
            },
        )
        remaining = (self.config.iterations - iteration) * window.seconds / window.iterations
        if self.config.minutes:
            remaining = max(0.0, min(remaining, 60 * self.config.minutes - elapsed))
        progress.report(
            iteration,
            f"loss {loss:.4f}  loss_index {index:>9,.0f}  {window.images_per_second:,.1f} images/s  "
            f"data wait {window.wait_share:.1%}  ETA {duration(remaining)}",
        )
        if iteration == SETTLED and remaining > LONG_RUN:
            say(
                f"projected {self.config.iterations:,} iterations at this rate take "
                f"{duration(remaining)}; --iterations or --minutes make a shorter run"
            )

    def look(self, iteration: int) -> None:
        """Evaluates on the held-out images, and draws some of them."""
        self.watch.enter(EVAL)
        result = evaluate(self.step.model, self.held_out, self.config.loss, self.precision)
        self.held_out_index.append(result.loss_index)
        self.board.scalars(
            iteration,
            {
                f"loss/{self.config.loss}/held_out": result.loss,
                "loss_index/held_out": result.loss_index,
            },
        )
        originals = self.held_out[:: max(1, len(self.held_out) // SAMPLE_IMAGES)][:SAMPLE_IMAGES]
        picture = pairs(originals, reconstruct(self.step.model, originals, self.precision))
        save_png(picture, self.run.sample(iteration))
        self.board.picture(iteration, "held_out/original_over_reconstruction", picture)
        self.board.flush()
        say(f"iteration {iteration:,}: held-out loss_index {result.loss_index:,.0f}")

    def save(self, iteration: int) -> None:
        state = {
            "model": self.step.model.state_dict(),
            "optimiser": self.step.optimiser.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "iteration": iteration,
            "config": self.config.as_dict(),
            "run": self.run.describe(),
        }
        checkpoint.write(self.run.checkpoints, state, keep=3)

    def summarise(self) -> None:
        """The run in three lines. The first step, which warms up and compiles, is not in the rates."""
        windows = self.windows[1:] or self.windows
        seconds = sum(window.seconds for window in windows)
        images = self.config.batch_size * sum(window.iterations for window in windows)
        wait = sum(window.wait_share * window.seconds for window in windows)
        say(
            f"\nheld-out loss_index {self.held_out_index[0]:,.0f} at the start, "
            f"{self.held_out_index[-1]:,.0f} at the end"
        )
        say(
            f"{images / seconds:,.1f} images/s, data wait {wait / seconds:.2%}, first step "
            f"{self.windows[0].seconds:.1f} s, peak memory {peak_memory(self.step.device)}"
        )


def peak_memory(device: torch.device) -> str:
    """The most memory this process has held, on the host and on its GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = f"{host:.1f} GiB"
    if device.type == "cuda":
        text += f" host, {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU (PyTorch's)"
    return text
