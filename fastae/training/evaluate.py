"""Held-out images through the model as it stands: reconstructions, their loss and the yardstick."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastae.losses import element_of, loss_index, squared_error
from fastae.model import AutoEncoder
from fastae.utils.device import Precision

BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """loss: mean loss element. loss_index: mean squared error x 1e7. Both over all images given."""

    loss: float
    loss_index: float


def reconstruct(model: AutoEncoder, images: Tensor, precision: Precision) -> Tensor:
    """(N, 3, S, S) in [0, 1] -> float32 of the same shape, with batch norm's running statistics."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision.autocast(images.device):
            return torch.cat([model(batch).float() for batch in images.split(BATCH)])
    finally:
        model.train(was_training)


def evaluate(model: AutoEncoder, images: Tensor, loss: str, precision: Precision) -> Evaluation:
    """The loss and the yardstick on these images."""
    reconstruction = reconstruct(model, images, precision)
    return Evaluation(
        loss=element_of(loss)(reconstruction, images).mean().item(),
        loss_index=loss_index(squared_error(reconstruction, images).mean().item()),
    )
