"""Predicts the time of a training step on cards that are not here, from FLOPs and bytes.

FLOPs are counted from the model, bytes as the compiled kernels move them. The floor is the arithmetic at the
card's full rate: no program can be faster. The expected time assumes that convolutions run at a share of the
full rate, and adds the bytes that the kernels between them read and write one after the other, as counted by
`make gpu-lower`. It is a range (`expected_seconds`). The cards' rates are from datasheets, and the results
are marked as predictions.

    python -m benchmarks.roofline [--batch-size 64]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import click
import torch
from torch import nn

from fastae.device.cards import CARDS
from fastae.experiment.article import ARTICLE_IMAGES, ARTICLE_SECONDS
from fastae.experiment.definition import Experiment

BATCH = 64
ACTIVATION_PASSES = 8.1
"""The number of reads and writes of all normalised activations in a step, forward and backward.

This and the next three are from the lowering (`make gpu-lower`, batch 64, bf16, channels-last, PyTorch 2.13).
A test compares their sum with it.
"""

LOSS_BYTES = 28
"""Bytes per pixel and step: cast images, the last bias and sigmoid, the loss, and their gradients."""

FEATURE_BYTES = 12
"""Bytes per step and feature between encoder and decoder: tanh and change of layout, both ways."""

DATA_BYTES = 15
"""Bytes per pixel and step, from the resident store: gather, flip, colors, change of layout."""

OPTIMIZER_BYTES = 28
"""Bytes per parameter and step: weight and moments read and written in float32, gradient and copy in bf16.

With fp16 (T4, V100), casts of weights and gradients take 12 more, which are not counted.
"""

USUAL_SHARE, NARROW_SHARE = 0.4, 0.25
"""The share of a card's full arithmetic rate in convolutions, and in those with few channels."""

NARROW = 32

USUAL_BANDWIDTH = 0.88
"""The share of a card's memory bandwidth in the kernels between convolutions."""

NODES, NODE_SECONDS = 112, 1e-6
"""Kernels and copies in a step's CUDA graph, by the lowering, and the seconds between two of them."""


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

    model = (
        Experiment().build_meta(image_size, latent).eval()
    )  # batch norm by running statistics takes a batch of one
    for module in model.modules():
        module.register_forward_hook(note)
    model(torch.empty(batch_size, 3, image_size, image_size, device="meta"))
    is_first = True
    for name, module in model.named_modules():
        multiplies = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        if not any(module.children()):
            yield Layer(name, module, *shapes[module], (2 if is_first else 3) if multiplies else 0)
        is_first = is_first and not multiplies


@dataclass(frozen=True)
class Cost:
    """The cost of one part of a step."""

    name: str

    flops: float
    """FLOPs; multiply and add count as two."""

    bytes: float
    """Bytes that are read and written."""

    channels: float = math.inf
    """The smaller number of a layer's input and output channels."""


def count(batch_size: int = BATCH, image_size: int = 128, element_bytes: int = 2) -> list[Cost]:
    """Returns the costs of a training step: layers forward and backward, normalisation, Adam, augmentation.

    `element_bytes` is the size of an activation's element, which is 2 with AMP.
    """
    traced = list(layers(batch_size, image_size))
    costs = []
    for layer in traced:
        if layer.directions:
            weights = sum(
                weight.numel() for name, weight in layer.module.named_parameters() if name == "weight"
            )
            moved = (layer.entered.numel() + layer.left.numel() + weights) * element_bytes
            name = f"{layer.name} {_describe(layer.module)}"
            channels = min(layer.entered[1], layer.left[1])
            costs.append(Cost(name, layer.flops, layer.directions * moved, channels))
    activations = sum(each.left.numel() for each in traced if isinstance(each.module, nn.BatchNorm2d))
    parameters = sum(weight.numel() for each in traced for weight in each.module.parameters())
    pixels = batch_size * 3 * image_size**2
    features = next(each.entered.numel() for each in traced if isinstance(each.module, nn.Linear))
    costs.append(Cost("batch norm, ReLU", 0, ACTIVATION_PASSES * activations * element_bytes))
    costs.append(Cost("loss and tanh", 40 * pixels, LOSS_BYTES * pixels + FEATURE_BYTES * features))
    costs.append(Cost("gather and augmentation", 25 * pixels, DATA_BYTES * pixels))
    costs.append(Cost("Adam", 12 * parameters, OPTIMIZER_BYTES * parameters))
    return costs


def _describe(layer: nn.Module) -> str:
    """Returns a layer's kind and channels in words: 'convolution 3->32'."""
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}->{layer.out_features}"
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    kind = "transposed" if isinstance(layer, nn.ConvTranspose2d) else "convolution"
    return f"{kind} {layer.in_channels}->{layer.out_channels}"


def floor_seconds(costs: list[Cost], flops: float) -> float:
    """Returns the seconds that a step takes at least, for its arithmetic at `flops` FLOP/s."""
    return sum(cost.flops for cost in costs if "->" in cost.name) / flops


def expected_seconds(costs: list[Cost], flops: float, bandwidth: float) -> tuple[float, float]:
    """Returns the least and most expected seconds of a step, whose kernels run one after the other.

    A convolution's own traffic is assumed to be hidden by its arithmetic. The shorter time assumes that all
    convolutions run at USUAL_SHARE. The longer one assumes NARROW_SHARE for narrow ones, USUAL_BANDWIDTH for
    the bytes, and a pause between any two kernels.

    Args:
        costs: the parts of the step.
        flops: the card's FLOP/s.
        bandwidth: the card's bytes/s.
    """
    narrow = [cost for cost in costs if cost.channels <= NARROW]
    usual = [cost for cost in costs if cost.channels > NARROW]
    traffic = sum(cost.bytes for cost in costs if "->" not in cost.name) / bandwidth
    least = floor_seconds(costs, USUAL_SHARE * flops) + traffic
    most = floor_seconds(usual, USUAL_SHARE * flops) + floor_seconds(narrow, NARROW_SHARE * flops)
    return least, most + traffic / USUAL_BANDWIDTH + NODES * NODE_SECONDS


def in_words(seconds: float) -> str:
    """Returns the time of the six runs, and its ratio to the article's, in words."""
    return f"six runs in {span(seconds)}, {ARTICLE_SECONDS / seconds:.3g}x the article's speed"


def span(seconds: float) -> str:
    """Returns a time in words: '1.5 h', '20 min'."""
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def lines(batch_size: int = BATCH) -> list[str]:
    """Returns the table of parts, and the predictions for the cards, as lines."""
    costs = count(batch_size)
    total = sum(cost.flops for cost in costs)
    shown = [f"  {'part of a step':42} {'GFLOP':>9} {'share':>6} {'MB moved':>9}"]
    for cost in costs:
        shown.append(
            f"  {cost.name:42} {cost.flops / 1e9:9,.1f} {cost.flops / total:6.1%} {cost.bytes / 1e6:9,.0f}"
        )
    shown.append(f"  {'all, a batch of ' + str(batch_size):42} {total / 1e9:9,.1f}")
    shown.append("")
    shown.append("  On paper, from datasheet figures (predictions, not measurements), a step in ms:")
    shown.append(f"  {'card':16} {'floor':>6} {'expected':>13}")
    for card in CARDS:
        floor = floor_seconds(costs, card.half)
        least, most = expected_seconds(costs, card.half, card.bandwidth)
        steps = ARTICLE_IMAGES / batch_size
        shown.append(
            f"  {card.name:16} {1e3 * floor:6.2f} {1e3 * least:6.2f}-{1e3 * most:<6.2f} six runs in "
            f"{span(steps * least)} to {span(steps * most)} (a prediction)"
        )
    shown.append("  floor: only the arithmetic, at the full rate, which convolutions do not reach.")
    shown.append(
        f"  expected: convolutions at {USUAL_SHARE:.0%} (upper end: those of at most {NARROW} channels at "
        f"{NARROW_SHARE:.0%}) of the full rate,"
    )
    shown.append(
        f"  other bytes at the full bandwidth (upper end: {USUAL_BANDWIDTH:.0%}, and {NODES} pauses of "
        f"{1e6 * NODE_SECONDS:.0f} us)."
    )
    return shown


@click.command(help=__doc__)
@click.option("--batch-size", default=64, show_default=True)
def main(batch_size: int) -> None:
    print("\n".join(lines(batch_size)))


if __name__ == "__main__":
    main()
