"""ReLU in the form that suits the compiled step on a GPU: its backward pass reads no mask from memory.

The backward pass of `nn.ReLU` reads ReLU's output. It is part of the two kernels of batch norm's backward
pass, which therefore have to read a third tensor. The backward pass of `torch.where` reads ReLU's input
instead. These kernels recompute that input from the convolution's output, which they read anyway. Values and
gradients are the same, also at 0, NaN and infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastae.experiment.model import AutoEncoder


def rectified(input: Tensor) -> Tensor:
    """Returns ReLU of any tensor. NaN stays NaN, and the gradient at 0 is 0."""
    return torch.where(input <= 0, 0, input)


class RecomputedReLU(nn.ReLU):
    """`nn.ReLU` by `rectified` where it is compiled, and by PyTorch's kernel elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        return rectified(input) if torch.compiler.is_compiling() else super().forward(input)


def recompute_masks(model: AutoEncoder) -> None:
    """Replaces every ReLU of the model by a RecomputedReLU. The state dict keeps its names."""
    for part in (model.encoder, model.decoder):
        for index, layer in enumerate(part):
            if isinstance(layer, nn.ReLU):
                part[index] = RecomputedReLU(layer.inplace)
