"""What a training step must cost: FLOPs counted from the model, bytes as the compiled kernels move them.

The floor is the arithmetic at the card's full rate: no program can be faster. A second figure adds the bytes
that the kernels between the convolutions read and write, one after the other at the card's full bandwidth, as
`make gpu-lower` counts them; a third has the convolutions run at 40 % of the full rate, which is usual. The
cards are not here: their rates are the datasheets', and the results are predictions, marked so.

    python -m benchmarks.roofline [--batch-size 64]
"""

from __future__ import annotations

from dataclasses import dataclass

import click
from torch import nn

from fastae.flops import layers
from fastae.utils.device import CARDS

ARTICLE_STEPS = 600_000
"""Of all six runs, of BATCH images each."""
ARTICLE_HOURS = 30.0
BATCH = 64
ACTIVATION_PASSES = 10.2
"""Reads and writes of all normalised activations in a step, forward and backward. This and the next three are
the lowering's (`make gpu-lower`, batch 64, bf16, channels-last, PyTorch 2.13), which a test adds up."""

CAST_BYTES = 12
"""A parameter and step: float32 read and bf16 written, then its gradient the other way."""

LOSS_BYTES = 28
"""A pixel and step: the images cast, the last layer's bias and sigmoid, the loss, and their gradients."""

FEATURE_BYTES = 12
"""A number between decoder and encoder, and step: tanh and a change of layout, forward and backward."""

DATA_BYTES = 15
"""A pixel and step, from the resident store: gather, flip, colors, change of layout."""

OPTIMIZER_BYTES = 28
"""A parameter and step: weight, two moments and gradient read, weight and moments written, in float32."""

ADAM = "Adam"

USUAL_SHARE = 0.4
"""Of a card's full arithmetic rate, in convolutions."""


@dataclass(frozen=True)
class Cost:
    """One part of a step of one batch. flops: multiply and add count as two."""

    name: str
    flops: float
    bytes: float


def count(batch_size: int = BATCH, image_size: int = 128, element_bytes: int = 2) -> list[Cost]:
    """The parts of one training step: each layer forward and backward, normalisation, Adam, augmentation.

    element_bytes: of an activation, 2 under AMP.
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
            costs.append(Cost(name, layer.flops, layer.directions * moved))
    activations = sum(each.left.numel() for each in traced if isinstance(each.module, nn.BatchNorm2d))
    parameters = sum(weight.numel() for each in traced for weight in each.module.parameters())
    pixels = batch_size * 3 * image_size**2
    features = next(each.entered.numel() for each in traced if isinstance(each.module, nn.Linear))
    costs.append(Cost("batch norm, ReLU", 0, ACTIVATION_PASSES * activations * element_bytes))
    costs.append(Cost("casts of weights and gradients", 0, CAST_BYTES * parameters))
    costs.append(Cost("loss and tanh", 40 * pixels, LOSS_BYTES * pixels + FEATURE_BYTES * features))
    costs.append(Cost("gather and augmentation", 25 * pixels, DATA_BYTES * pixels))
    costs.append(Cost(ADAM, 12 * parameters, OPTIMIZER_BYTES * parameters))
    return costs


def _describe(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}->{layer.out_features}"
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    kind = "transposed" if isinstance(layer, nn.ConvTranspose2d) else "convolution"
    return f"{kind} {layer.in_channels}->{layer.out_channels}"


def floor_seconds(costs: list[Cost], flops: float) -> float:
    """Seconds a step that no program can do without: its arithmetic at this rate."""
    return sum(cost.flops for cost in costs if "->" in cost.name) / flops


def lowered_seconds(costs: list[Cost], flops: float, bandwidth: float) -> float:
    """Seconds a step as it is compiled today: its kernels run one after the other.

    A convolution's own traffic is hidden by its arithmetic.
    """
    traffic = sum(cost.bytes for cost in costs if "->" not in cost.name) / bandwidth
    return floor_seconds(costs, flops) + traffic


def in_words(seconds: float) -> str:
    """The six runs in this time, against the article's."""
    hours = seconds / 3600
    span = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return f"six runs in {span}, {ARTICLE_HOURS / hours:.3g}x the article's speed"


def lines(batch_size: int = BATCH) -> list[str]:
    """The table of parts, and the cards on paper."""
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
    shown.append(f"  {'card':16} {'floor':>6} {'compiled':>9} {f'at {USUAL_SHARE:.0%}':>7}")
    for card in CARDS:
        floor = floor_seconds(costs, card.half)
        compiled, usual = (
            lowered_seconds(costs, share * card.half, card.bandwidth) for share in (1, USUAL_SHARE)
        )
        shown.append(
            f"  {card.name:16} {1e3 * floor:6.2f} {1e3 * compiled:9.2f} {1e3 * usual:7.2f}  "
            f"{in_words(ARTICLE_STEPS * usual)} (a prediction)"
        )
    shown.append("  floor: the arithmetic alone. compiled: and the bytes between, at full bandwidth.")
    shown.append(f"  at {USUAL_SHARE:.0%}: the same with convolutions at {USUAL_SHARE:.0%} of the full rate.")
    return shown


@click.command(help=__doc__)
@click.option("--batch-size", default=64, show_default=True)
def main(batch_size: int) -> None:
    print("\n".join(lines(batch_size)))


if __name__ == "__main__":
    main()
