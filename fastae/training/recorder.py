"""Where a run's results go: metrics.csv, TensorBoard, pictures, checkpoints, display, monitor.

Of several ranks only the main one has a recorder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
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
from fastae.training.progress import LogLines, TrainMetrics
from fastae.utils.console import duration, log
from fastae.utils.files import atomic_write
from fastae.utils.pictures import encode_png, sample_sheet

HYPERPARAMETERS = ("loss", "lr", "batch_size", "iterations", "latent", "image_size", "amp", "seed")
"""The settings that TensorBoard's HPARAMS compares runs by."""

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
    },
}
"""The tags in TensorBoard of the columns of metrics.csv, by kind of row."""

PICTURE_TAG = "held_out/original_over_reconstruction"

PROJECTED_AT = 10
"""Iterations after which a run that will take more than LONG_RUN seconds is announced."""

LONG_RUN = 15 * 60


class Recorder(AbstractContextManager):
    """Records a run from the iteration `start` on. Methods raise OSError if a disk is full.

    description: what config.json says of the run.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        description: Mapping[str, Any],
        monitor: Monitor,
        display: LogLines,
        start: int = 0,
    ) -> None:
        self._run = run
        self._config = config
        self._description = description
        self._monitor = monitor
        self._display = display
        self._start = start
        self._projected = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._metrics = stack.enter_context(MetricsWriter(self._run.metrics, self._start))
            self._tensorboard = stack.enter_context(TensorBoardWriter(self._run.path, self._start))
            settings = self._config.as_dict()
            self._tensorboard.settings(self._start, settings)
            if self._start == 0:
                tags = {kind: self._tags(kind) for kind in TAGS}
                charts = {
                    tags[TRAIN][name]: [tags[kind][name] for kind in TAGS] for name in ("loss", "loss_index")
                }
                self._tensorboard.layout(charts)
                compared = {name: settings[name] for name in HYPERPARAMETERS}
                self._tensorboard.hyperparameters(
                    compared, [tags[HELD_OUT][n] for n in ("loss_index", "psnr")]
                )
            # Last, so that it is the first to end: what it still writes needs the others.
            self._saver = stack.enter_context(Saver(self._run.checkpoints, self._config.keep))
            stack.enter_context(self._display.begin(self._start, self._config.iterations))
            self._profiler = stack.enter_context(StepProfiler(self._config.profile, self._run.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def phase(self, phase: Phase) -> None:
        """What the iterations that follow are called in the utilisation report."""
        self._monitor.enter(phase)
        if phase is Phase.TRAIN:
            self._profiler.begin()

    def advance(self) -> None:
        """One iteration is done. Raises what a failed save raised."""
        self._display.advance()
        if trace := self._profiler.step():
            log(f"profile   {trace}")
        self._saver.check()

    def train(self, metrics: TrainMetrics) -> None:
        """A log step."""
        window = metrics.window
        images = window.iterations * self._config.batch_size
        self._monitor.record(images, window.seconds, metrics.data_seconds, metrics.device_seconds)
        self._record(
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
        self._display.report(metrics)
        if metrics.iteration >= self._start + PROJECTED_AT and not self._projected:
            self._projected = True
            if metrics.remaining > LONG_RUN:
                on_cpu = self._description["device_type"] == "cpu"
                log(
                    f"hint      at this rate the run takes {duration(metrics.remaining)}: --minutes N, "
                    "--iterations N or --image-size 64 shorten it" + (", and so does a GPU" if on_cpu else "")
                )

    def evaluation(self, iteration: int, evaluation: Evaluation) -> None:
        """The metrics and pictures of an evaluation."""
        self._record(
            iteration, HELD_OUT, loss=evaluation.loss, loss_index=evaluation.loss_index, psnr=evaluation.psnr
        )
        originals, reconstructions = evaluation.originals.cpu(), evaluation.reconstructions.cpu()
        self._saver.submit(lambda: self._draw(iteration, originals, reconstructions))
        log(f"iteration {iteration:,}: held-out loss_index {evaluation.loss_index:,.0f}")

    def _record(self, iteration: int, kind: str, **values: float) -> None:
        self._metrics.append(iteration, kind, **values)
        tags = self._tags(kind)
        finite = {tags[name]: value for name, value in values.items() if math.isfinite(value)}
        self._tensorboard.scalars(iteration, finite)

    def _tags(self, kind: str) -> dict[str, str]:
        return {name: tag.format(loss=self._config.loss) for name, tag in TAGS[kind].items()}

    def _draw(self, iteration: int, originals: Tensor, reconstructions: Tensor) -> None:
        """In the saver's thread: encoding takes 70 ms, which training need not wait for."""
        sheet = sample_sheet(originals, reconstructions, iteration)
        png = encode_png(sheet)
        with atomic_write(self._run.sample(iteration)) as file:
            file.write(png)
        self._tensorboard.image(iteration, PICTURE_TAG, png, sheet.shape[:2])

    def save(self, iteration: int, state: Mapping[str, Any], final: bool) -> None:
        """Starts to write a checkpoint; the run's other files are on the disk up to it before it is.

        final: the run is finished; it keeps this checkpoint alone, and the weights.
        """
        self._metrics.sync()
        self._tensorboard.sync()
        about = {"iteration": iteration, "config": self._config.as_dict(), "run": dict(self._description)}
        self._saver.save({**state, **about}, weights=self._run.weights if final else None)

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises what a failed save raised."""
        self._saver.wait()
