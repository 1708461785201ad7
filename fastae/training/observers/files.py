"""Observers that write a run's files: metrics.csv, TensorBoard's events, pictures, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastae.config import TrainConfig
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, TRAIN, MetricsWriter
from fastae.runs.saver import Saver
from fastae.runs.tensorboard import TensorBoardWriter
from fastae.training.clock import Window
from fastae.training.evaluate import Evaluation
from fastae.training.observers.observer import Observer
from fastae.utils.files import atomic_write
from fastae.utils.pictures import encode_png, sample_sheet

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


class MetricsFile(Observer):
    """Appends to metrics.csv. The rows after iteration `start` are removed first."""

    def __init__(self, run: RunFolder, start: int) -> None:
        self._writer = MetricsWriter(run.metrics_file, start)

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)

    def window(self, window: Window) -> None:
        self._writer.append(window.iteration, TRAIN, **window.values)

    def evaluation(self, evaluation: Evaluation) -> None:
        self._writer.append(evaluation.iteration, HELD_OUT, **evaluation.values)

    def flush(self) -> None:
        self._writer.sync()


class TensorBoard(Observer):
    """Writes scalars to a new event file, which begins with a restart record at iteration `start`.

    `usage_means` returns tag -> value of the GPU's and CPU's use since its last call.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        start: int,
        *,
        usage_means: Callable[[], Mapping[str, float]],
    ) -> None:
        self.writer = TensorBoardWriter(run.path, start)
        self._usage_means = usage_means
        self._tags = {
            kind: {name: tag.format(loss=config.loss) for name, tag in tags.items()}
            for kind, tags in TAGS.items()
        }

    def __exit__(self, *exception: object) -> None:
        self.writer.__exit__(*exception)

    def window(self, window: Window) -> None:
        self._scalars(window.iteration, TRAIN, window.values)
        self.writer.scalars(window.iteration, self._usage_means())

    def evaluation(self, evaluation: Evaluation) -> None:
        self._scalars(evaluation.iteration, HELD_OUT, evaluation.values)

    def _scalars(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes the finite values."""
        tags = self._tags[kind]
        finite = {tags[name]: value for name, value in values.items() if math.isfinite(value)}
        self.writer.scalars(iteration, finite)

    def flush(self) -> None:
        self.writer.sync()


class Checkpoints(Observer):
    """Writes checkpoints and pictures in a thread.

    It must be closed before the others, since what the thread still writes needs them.
    """

    def __init__(self, run: RunFolder, config: TrainConfig, tensorboard: TensorBoardWriter) -> None:
        self._run = run
        self._tensorboard = tensorboard
        self._saver = Saver(run.checkpoints, config.keep)

    def __exit__(self, *exception: Any) -> None:
        self._saver.__exit__(*exception)

    def step(self, iteration: int, done: float) -> None:
        self._saver.check()

    def evaluation(self, evaluation: Evaluation) -> None:
        iteration = evaluation.iteration
        originals, reconstructions = evaluation.originals.cpu(), evaluation.reconstructions.cpu()

        def draw() -> None:  # in the thread, since the encoding takes 70 ms
            sheet = sample_sheet(originals, reconstructions, iteration)
            png = encode_png(sheet)
            self._run.samples.mkdir(exist_ok=True)  # somebody may have removed it
            with atomic_write(self._run.sample(iteration)) as file:
                file.write(png)
            self._tensorboard.image(iteration, PICTURE_TAG, png, shape=sheet.shape[:2])

        self._saver.submit(draw)

    def save(self, checkpoint: Checkpoint, final: bool) -> None:
        self._saver.save(checkpoint, weights=self._run.weights_file if final else None)

    def finish(self, is_complete: bool) -> None:
        self._saver.wait()
