"""The FLOPs of a training step, counted from the shapes of the model's layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from fastae.model import meta_model


@dataclass(frozen=True)
class Layer:
    """A layer of the model, traced with one batch."""

    name: str
    module: nn.Module

    entered: torch.Size
    """The shape of the layer's input."""

    left: torch.Size
    """The shape of the layer's output."""

    directions: int
    """The number of matrix products in a training step, each as large as that of the forward pass.

    They are the forward pass, the gradient of the weights, and the gradient of the input, which the first
    layer does not need. It is 0 for layers without a product, such as batch norm.
    """

    @property
    def flops(self) -> int:
        """FLOPs in a training step. Multiply and add count as two, as in `torch.utils.flop_counter`."""
        module = self.module
        if isinstance(module, nn.Linear):
            return self.directions * 2 * self.entered.numel() * module.out_features
        if isinstance(module, nn.ConvTranspose2d):  # each input element is spread over area x outputs
            area = math.prod(module.kernel_size)
            return self.directions * 2 * self.entered.numel() * area * module.out_channels
        if isinstance(module, nn.Conv2d):
            return (
                self.directions * 2 * self.left.numel() * math.prod(module.kernel_size) * module.in_channels
            )
        return 0


def layers(batch_size: int, image_size: int = 128, latent: int = 512) -> Iterator[Layer]:
    """Yields all layers of the model, in order. Nothing is computed."""
    shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shapes[module] = inputs[0].shape, output.shape

    model = meta_model(image_size, latent).eval()  # batch norm by running statistics takes a batch of one
    for module in model.modules():
        module.register_forward_hook(note)
    model(torch.empty(batch_size, 3, image_size, image_size, device="meta"))
    is_first = True
    for name, module in model.named_modules():
        multiplies = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        if not any(module.children()):
            yield Layer(name, module, *shapes[module], (2 if is_first else 3) if multiplies else 0)
        is_first = is_first and not multiplies


@cache
def training_flops(image_size: int = 128, latent: int = 512) -> float:
    """Training FLOPs per image, of the convolutions and linear layers only, as is usual for MFU."""
    return float(sum(layer.flops for layer in layers(1, image_size, latent)))


def rate_text(flops: float) -> str:
    """FLOP/s in words: '213 TFLOP/s', '3.7 GFLOP/s'."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP/s"
