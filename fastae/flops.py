"""How much arithmetic the model is: the FLOPs of a training step, counted from its layers' shapes."""

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
    """A layer of the model, traced with one batch. entered, left: the shapes of its input and output.

    directions: the products that a step makes of it, each as large as the forward one: forward, the gradient
    of its weights, and of its inputs, which the first layer does not need. 0 for layers without a product.
    """

    name: str
    module: nn.Module
    entered: torch.Size
    left: torch.Size
    directions: int

    @property
    def flops(self) -> int:
        """Of a training step; multiply and add count as two, as `torch.utils.flop_counter` counts them."""
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
    """All layers of the model, in their order; nothing is computed."""
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
    """FLOPs per image trained on: those of the convolutions and linear layers, as MFU is usually counted."""
    return float(sum(layer.flops for layer in layers(1, image_size, latent)))


def rate_text(flops: float) -> str:
    """FLOP/s for people: '213 TFLOP/s', '3.7 GFLOP/s'."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP/s"
