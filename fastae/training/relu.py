"""ReLU in the form that a GPU's compiled step wants: without a mask in memory.

The backward pass of `nn.ReLU` reads its output: a third tensor for both kernels of batch norm's backward
pass. That of `where` reads the input, which those kernels compute anew from what they read anyway, the
convolution's output. Values and gradients are the same, at 0, NaN and infinity too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastae.model import AutoEncoder


def rectified(input: Tensor) -> Tensor:
    """ReLU of any tensor: NaN stays, and the gradient at 0 is 0."""
    return torch.where(input <= 0, 0, input)


class RecomputedReLU(nn.ReLU):
    """`nn.ReLU` by `rectified` where it is compiled, and by PyTorch's kernel elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        return rectified(input) if torch.compiler.is_compiling() else super().forward(input)


def recompute_masks(model: AutoEncoder) -> None:
    """Has every ReLU of the model be a RecomputedReLU; its state dict keeps its names."""
    for part in (model.encoder, model.decoder):
        for place, layer in enumerate(part):
            if isinstance(layer, nn.ReLU):
                part[place] = RecomputedReLU(layer.inplace)
