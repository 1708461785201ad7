"""Where a training loop's results go: metrics.csv, TensorBoard, pictures, checkpoints, display, monitor.

Of several ranks the first has a `Recorder`, the others its null twin, so that the loop is the same on all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from fastae.config import TrainConfig
from fastae.monitor.monitor import Monitor
from fastae.monitor.profiler import StepProfiler
from fastae.monitor.recording import Phase
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, TRAIN, MetricsWriter
from fastae.runs.saver import Saver
from fastae.runs.tensorboard import TensorBoardWriter
from fastae.training.evaluate import Evaluation
from fastae.training.progress import Display, Status
from fastae.training.step_timer import Window
from fastae.utils.console import duration, log
from fastae.utils.files import atomic_write
from fastae.utils.pictures import encode_png, sample_sheet

HYPERPARAMETERS = ("loss", "lr", "batch_size", "iterations", "latent", "image_size", "amp", "seed")
"""The settings that TensorBoard's HPARAMS compares runs by."""

PROJECTED_AT = 10
"""Iterations after which the run's length is projected."""

LONG_RUN = 15 * 60
"""Seconds from which a projection is worth a line."""

PICTURE_TAG = "held_out/original_over_reconstruction"


@dataclass(frozen=True)
class TrainMetrics:
    """What a log step shows. loss: mean loss element. data_seconds: for which the host waited for a batch.
    device_seconds: for which it waited for the device. remaining: seconds until the run is over."""

    iteration: int
    loss: float
    loss_index: float
    gradient_norm: float
    window: Window
    data_seconds: float
    device_seconds: float
    remaining: float


class NullRecorder:
    """Records nothing but what only its rank knows: the images of a loss that is not finite."""

    evaluates = False
    """Whether this rank evaluates and saves."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def phase(self, phase: Phase) -> None:
        """What the iterations that follow are called in the utilisation report."""

    def advance(self) -> None:
        """One iteration is done; costs nothing between log steps. Raises what a failed save raised."""

    def train(self, metrics: TrainMetrics) -> None:
        """The metrics of a log step."""

    def evaluation(self, iteration: int, evaluation: Evaluation) -> None:
        """The metrics and pictures of an evaluation."""

    def save(self, iteration: int, state: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; the run's other files are on the disk up to it before it is."""

    def complete(self, iteration: int, state: Mapping[str, Any]) -> None:
        """Starts to write what a finished run keeps: its last checkpoint alone, and the weights."""

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises what a failed save raised."""

    def non_finite(self, iteration: int, images: Sequence[str]) -> Path:
        """Lists the images of an iteration whose loss is not finite; returns the file."""
        return self.run.note_non_finite(iteration, images)


class Recorder(NullRecorder):
    """Of the rank that logs and saves; a context manager. Its methods raise OSError if a disk is full.

    description: what config.json says of the run. start: the iteration that it continues from.
    """

    evaluates = True

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        description: Mapping[str, Any],
        monitor: Monitor,
        display: Display,
        start: int = 0,
    ) -> None:
        super().__init__(run)
        self._config = config
        self._description = description
        self._monitor = monitor
        self._display = display
        self._start = start
        self._projected = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._metrics = stack.enter_context(MetricsWriter(self.run.metrics))
            self._metrics.truncate_after(self._start or -1)
            self._tensorboard = stack.enter_context(TensorBoardWriter(self.run.path, self._start))
            settings = self._config.as_dict()
            self._tensorboard.settings(self._start, settings)
            if self._start == 0:
                loss = f"loss/{self._config.loss}"
                charts = {
                    loss: [loss, f"{loss}/held_out"],
                    "loss_index": ["loss_index/train", "loss_index/held_out"],
                }
                self._tensorboard.layout(charts)
                self._tensorboard.hyperparameters(
                    {name: settings[name] for name in HYPERPARAMETERS},
                    ["loss_index/held_out", "psnr/held_out"],
                )
            # Last, so that it is the first to end: what it still writes needs the others.
            self._saver = stack.enter_context(Saver(self.run.checkpoints, self._config.keep))
            stack.enter_context(self._display.begin(self._start, self._config.iterations))
            self._profiler = stack.enter_context(StepProfiler(self._config.profile, self.run.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def phase(self, phase: Phase) -> None:
        self._monitor.enter(phase)
        if phase is Phase.TRAIN:
            self._profiler.begin()

    def advance(self) -> None:
        self._display.advance()
        if trace := self._profiler.step():
            log(f"profile   {trace}")
        if self._saver.idle:
            self._saver.wait()

    def train(self, metrics: TrainMetrics) -> None:
        window = metrics.window
        self._metrics.append(
            metrics.iteration,
            TRAIN,
            loss=metrics.loss,
            loss_index=metrics.loss_index,
            images_per_second=window.images_per_second,
            data_wait=window.data_wait,
            step_p50_ms=1e3 * window.step_p50,
            step_p95_ms=1e3 * window.step_p95,
            grad_norm=metrics.gradient_norm,
        )
        self._metrics.flush()
        scalars = {
            f"loss/{self._config.loss}": metrics.loss,
            "loss_index/train": metrics.loss_index,
            "gradient_norm": metrics.gradient_norm,
            "speed/images_per_second": window.images_per_second,
            "speed/data_wait_share": window.data_wait,
            "speed/step_ms_p50": 1e3 * window.step_p50,
            "speed/step_ms_p95": 1e3 * window.step_p95,
        }
        images = window.iterations * self._config.batch_size
        self._monitor.record(images, window.seconds, metrics.data_seconds, metrics.device_seconds)
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        self._tensorboard.scalars(metrics.iteration, finite | self._monitor.means())
        status = Status(
            metrics.loss, metrics.loss_index, window.images_per_second, window.data_wait, metrics.remaining
        )
        self._display.report(metrics.iteration, status)
        if metrics.iteration >= self._start + PROJECTED_AT and not self._projected:
            self._projected = True
            self._project(metrics.remaining)

    def _project(self, remaining: float) -> None:
        if remaining > LONG_RUN:
            shorter = "--minutes N, --iterations N or --image-size 64"
            other = "; a GPU is what this is made for" if self._description["device_type"] == "cpu" else ""
            log(f"hint      at this rate the run takes {duration(remaining)}: {shorter} shorten it{other}")

    def evaluation(self, iteration: int, evaluation: Evaluation) -> None:
        self._metrics.append(
            iteration, HELD_OUT, loss=evaluation.loss, loss_index=evaluation.loss_index, psnr=evaluation.psnr
        )
        self._metrics.flush()
        self._tensorboard.scalars(
            iteration,
            {
                f"loss/{self._config.loss}/held_out": evaluation.loss,
                "loss_index/held_out": evaluation.loss_index,
                "psnr/held_out": evaluation.psnr,
            },
        )
        originals, reconstructions = evaluation.originals.cpu(), evaluation.reconstructions.cpu()
        self._saver.submit(lambda: self._draw(iteration, originals, reconstructions))
        log(f"iteration {iteration:,}: held-out loss_index {evaluation.loss_index:,.0f}")

    def _draw(self, iteration: int, originals: Tensor, reconstructions: Tensor) -> None:
        """In the saver's thread: encoding takes 70 ms, which training need not wait for."""
        sheet = sample_sheet(originals, reconstructions, iteration)
        png = encode_png(sheet)
        with atomic_write(self.run.sample(iteration)) as file:
            file.write(png)
        self._tensorboard.image(iteration, PICTURE_TAG, png, sheet.shape[:2])

    def save(self, iteration: int, state: Mapping[str, Any]) -> None:
        self._metrics.sync()
        self._tensorboard.sync()
        self._saver.save(self._whole(iteration, state))

    def complete(self, iteration: int, state: Mapping[str, Any]) -> None:
        self._metrics.sync()
        self._tensorboard.sync()
        self._saver.save(self._whole(iteration, state), weights=self.run.weights)

    def _whole(self, iteration: int, state: Mapping[str, Any]) -> dict[str, Any]:
        run = {"config": self._config.as_dict(), "run": dict(self._description)}
        return {**state, "iteration": iteration, **run}

    def wait(self) -> None:
        self._saver.wait()
