"""Writes the results of a run: metrics.csv, TensorBoard, pictures, checkpoints, display, monitor.

If there are several ranks, only the main one has a recorder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from fastae.monitor.monitor import Monitor
from fastae.monitor.profiler import StepProfiler
from fastae.monitor.recording import Phase
from fastae.runs.checkpoint import Checkpoint, Progress
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, TRAIN, MetricsWriter
from fastae.runs.saver import Saver
from fastae.runs.tensorboard import TensorBoardWriter
from fastae.training.evaluate import Evaluation
from fastae.training.progress import LogLines
from fastae.training.run_ahead import TrainMetrics
from fastae.utils.console import duration, log
from fastae.utils.files import atomic_write
from fastae.utils.pictures import encode_png, sample_sheet

HYPERPARAMETERS = ("loss", "lr", "batch_size", "iterations", "latent", "image_size", "amp", "seed")
"""The settings by which TensorBoard's HPARAMS compares runs."""

TAGS = {
    TRAIN: {
        "loss": "loss/{loss}",
        "loss_index": "loss_index/train",
        "grad_norm": "gradient_norm",
        "images_per_second": "speed/images_per_second",
        "data_wait": "speed/data_wait_share",
        "step_p50_ms": "speed/step_ms_p50",
        "step_p95_ms": "speed/step_ms_p95",
    },
    HELD_OUT: {
        "loss": "loss/{loss}/held_out",
        "loss_index": "loss_index/held_out",
        "psnr": "psnr/held_out",
        "ssim": "ssim/held_out",
    },
}
"""Kind of row in metrics.csv -> column -> tag in TensorBoard."""

PICTURE_TAG = "held_out/original_over_reconstruction"

PROJECTED_AFTER, LONG_RUN = 10, 15 * 60
"""The iterations after which a hint is logged if the run will take more than LONG_RUN seconds."""


class Recorder:
    """Records a run. The methods raise OSError if a disk is full.

    Args:
        stack: closes what is opened here, in reverse order.
        run: the run's folder.
        description: what the run is made with.
        monitor: records the phases and the speed for the utilisation report.
        display: shows the log steps.
        start: the iteration that the run continues from; 0 for a new run.
        progress: the progress in the checkpoint that the run continues from.
    """

    def __init__(
        self,
        stack: ExitStack,
        run: RunFolder,
        description: RunDescription,
        *,
        monitor: Monitor,
        display: LogLines,
        start: int,
        progress: Progress,
    ) -> None:
        self._run = run
        self._config = config = description.config
        self._description = description
        self._monitor = monitor
        self._display = display
        self._project_at: float = start + PROJECTED_AFTER
        self._tags = {
            kind: {name: tag.format(loss=config.loss) for name, tag in tags.items()}
            for kind, tags in TAGS.items()
        }
        self._metrics = stack.enter_context(MetricsWriter(run.metrics_file, start, progress.metrics))
        if self._metrics.is_damaged:
            log(
                f"warning   {run.metrics_file.name} has lost or changed rows up to iteration {start:,}",
                "yellow",
            )
        self._tensorboard = stack.enter_context(TensorBoardWriter(run.path, start))
        if lost := [name for name in progress.events if not (run.path / name).is_file()]:
            files = "1 event file is" if len(lost) == 1 else f"{len(lost):,} event files are"
            log(f"warning   {files} missing: TensorBoard's curves have gaps", "yellow")
        self._events = (*progress.events, self._tensorboard.name)
        self._tensorboard.settings(start, config.as_dict())
        if start == 0:
            train, held_out = self._tags[TRAIN], self._tags[HELD_OUT]
            charts = {name: [train[name], held_out[name]] for name in ("loss", "loss_index")}
            self._tensorboard.layout(charts)
            hyperparameters = {name: getattr(config, name) for name in HYPERPARAMETERS}
            self._tensorboard.hyperparameters(hyperparameters, [held_out["loss_index"], held_out["psnr"]])
        # The saver is opened last and so closed first, since what it still writes needs the others.
        self._saver = stack.enter_context(Saver(run.checkpoints, config.keep))
        stack.enter_context(display.begin(None if config.minutes else config.iterations))
        self._profiler = stack.enter_context(StepProfiler(config.profile, run.path))

    def phase(self, phase: Phase) -> None:
        """Begins a phase of the run, for the utilisation report."""
        self._monitor.enter(phase)
        if phase is Phase.TRAIN:
            self._profiler.begin()

    def advance(self, iteration: int, share: float) -> None:
        """Notes that an iteration is done, and with it this share of the run, in [0, 1].

        Raises the error of a save that has failed.
        """
        self._display.advance(iteration, share)
        for index, line in enumerate(self._profiler.step()):
            log(f"{'' if index else 'profile':10}{line}")
        self._saver.check()

    def log_step(self, metrics: TrainMetrics, remaining: float) -> None:
        """Records a log step, `remaining` seconds before the run ends."""
        window = metrics.window
        self._monitor.record(
            images=window.iterations * self._config.batch_size,
            seconds=window.seconds,
            data_wait=window.data_wait * window.seconds,
            device_wait=metrics.device_seconds,
        )
        self._append(
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
        self._tensorboard.scalars(metrics.iteration, self._monitor.means())
        self._display.report(metrics, remaining)
        if metrics.iteration >= self._project_at:
            self._project_at = math.inf
            if remaining > LONG_RUN:
                remedies = ["--minutes N", "--iterations N"]
                remedies += ["--image-size 64"] if self._config.image_size > 64 else []
                remedies += ["a GPU"] if self._description.device_type == "cpu" else []
                log(f"hint      at this rate the run takes {duration(remaining)}; shorter with:")
                log(f"          {', '.join(remedies)}")

    def log_evaluation(self, iteration: int, evaluation: Evaluation) -> None:
        """Records the metrics and the pictures of an evaluation."""
        self._append(
            iteration,
            HELD_OUT,
            loss=evaluation.loss,
            loss_index=evaluation.loss_index,
            psnr=evaluation.psnr,
            ssim=evaluation.ssim,
        )
        originals, reconstructions = evaluation.originals.cpu(), evaluation.reconstructions.cpu()
        self._saver.submit(lambda: self._draw(iteration, originals, reconstructions))
        log(f"iteration {iteration:,}: held-out loss_index {evaluation.loss_index:,.0f}")

    def _append(self, iteration: int, kind: str, **values: float) -> None:
        """Appends a row to metrics.csv, and its finite values to TensorBoard."""
        self._metrics.append(iteration, kind, **values)
        tags = self._tags[kind]
        finite = {tags[name]: value for name, value in values.items() if math.isfinite(value)}
        self._tensorboard.scalars(iteration, finite)

    def _draw(self, iteration: int, originals: Tensor, reconstructions: Tensor) -> None:
        """Draws the pictures. It runs in the saver's thread, since the encoding takes 70 ms."""
        sheet = sample_sheet(originals, reconstructions, iteration)
        png = encode_png(sheet)
        self._run.samples.mkdir(exist_ok=True)  # somebody may have removed it
        with atomic_write(self._run.sample(iteration)) as file:
            file.write(png)
        self._tensorboard.image(iteration, PICTURE_TAG, png, shape=sheet.shape[:2])

    def save(self, iteration: int, *, seconds: float, training: Mapping[str, Any], final: bool) -> None:
        """Starts to write a checkpoint. The run's other files are on the disk before it is.

        Args:
            iteration: the last iteration that was trained.
            seconds: the time of training so far.
            training: what `TrainingStep.state` returns.
            final: whether the run is finished. It then keeps this checkpoint alone, and the weights.
        """
        self._tensorboard.sync()
        progress = Progress(seconds, self._metrics.sync(), self._events)
        found = Checkpoint(iteration, training, description=self._description, progress=progress)
        self._saver.save(found, weights=self._run.weights_file if final else None)

    def end_display(self) -> None:
        """Ends the display. What is logged from now on is the run's result."""
        self._display.end()

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises the error of a save that has failed."""
        self._saver.wait()
