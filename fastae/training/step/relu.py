"""ReLU in the form that suits the compiled step on a GPU: its backward pass reads no mask from memory.

The backward pass of `nn.ReLU` reads ReLU's output. It is part of the two kernels of batch norm's backward
pass, which therefore have to read a third tensor. The backward pass of `torch.where` reads ReLU's input
instead. These kernels recompute that input from the convolution's output, which they read anyway. Values and
gradients are the same, also at 0, NaN and infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastae.training.step.layers import replace_layers


def rectified(input: Tensor) -> Tensor:
    """Returns ReLU of any tensor. NaN stays NaN, and the gradient at 0 is 0."""
    return torch.where(input <= 0, 0, input)


class RecomputedReLU(nn.Module):
    """`nn.ReLU` by `rectified` where it is compiled, and by PyTorch's kernel elsewhere."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return rectified(input)
        return nn.functional.relu(input, inplace=self.inplace)


def recompute_masks(model: nn.Module) -> int:
    """Replaces every `nn.ReLU` of the model by a RecomputedReLU; returns how many there were."""
    return replace_layers(model, nn.ReLU, lambda layer: RecomputedReLU(layer.inplace))
