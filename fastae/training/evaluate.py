"""Evaluates a model on held-out images: reconstructions, their loss, loss_index, PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastae.device.choose import Precision
from fastae.experiment.losses import Loss, squared_error
from fastae.experiment.metrics import loss_index, ssim
from fastae.utils.sample import evenly_spaced

BATCH = 64
SAMPLES = 16


@dataclass(frozen=True)
class Evaluation:
    """How well a model reconstructs the held-out images."""

    iteration: int
    """The number of steps that the model was trained for."""

    loss: float
    """The mean loss element."""

    loss_index: float
    """The mean squared error x 1e7."""

    psnr: float
    """The mean PSNR of the images in dB, for a peak of 1."""

    ssim: float
    """The mean SSIM of the images, in [-1, 1]."""

    originals: Tensor
    """Up to SAMPLES of the images, evenly spaced: float32 (n, 3, S, S) in [0, 1]."""

    reconstructions: Tensor
    """Their reconstructions: float32 (n, 3, S, S) in [0, 1]."""

    @property
    def values(self) -> Mapping[str, float]:
        """The evaluation's row in metrics.csv: column -> value."""
        return {"loss": self.loss, "loss_index": self.loss_index, "psnr": self.psnr, "ssim": self.ssim}


def reconstruct(model: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    """Reconstructs images (N, 3, S, S) in [0, 1], with batch norm's running statistics.

    Returns float32 (N, 3, S, S) in [0, 1].
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision.autocast(images.device):
            return torch.cat([model(batch).float() for batch in images.split(BATCH)])
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module, images: Tensor, loss: Loss, *, precision: Precision, iteration: int
) -> Evaluation:
    """Evaluates on `images`, (N, 3, S, S) in [0, 1]. Waits for the device."""
    reconstructions = reconstruct(model, images, precision)
    figures = []
    for pair in zip(reconstructions.split(BATCH), images.split(BATCH), strict=True):
        error = squared_error(*pair).mean((1, 2, 3))
        element = loss.element.function(*pair).mean((1, 2, 3))
        figures.append(torch.stack([element, error, -10 * error.log10(), ssim(*pair)]))
    mean_element, mean_error, psnr, similarity = torch.cat(figures, dim=1).mean(dim=1).tolist()
    shown = evenly_spaced(range(len(images)), SAMPLES)
    return Evaluation(
        iteration=iteration,
        loss=mean_element,
        loss_index=loss_index(mean_error),
        psnr=psnr,
        ssim=similarity,
        originals=images[shown],
        reconstructions=reconstructions[shown],
    )
