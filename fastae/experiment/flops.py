"""The FLOPs of a training step."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastae.experiment.model import meta_model


@cache
def training_flops(image_size: int = 128, latent: int = 512) -> float:
    """Returns the training FLOPs per image, of the convolutions and linear layers only, as is usual for MFU.

    The forward pass, the gradients of the weights and the gradients of the layers' inputs count, except the
    gradient of the first layer's input. A multiply-add counts as two. The meta device computes only shapes.
    """
    images = torch.empty(2, 3, image_size, image_size, device="meta")  # batch norm needs two values
    with FlopCounterMode(display=False) as counter:
        meta_model(image_size, latent)(images).sum().backward()
    return counter.get_total_flops() / len(images)


def rate_text(flops: float) -> str:
    """FLOP/s in words: '213 TFLOP/s', '3.7 GFLOP/s'."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP/s"
