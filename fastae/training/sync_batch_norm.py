"""Batch norm over the whole batch if several ranks share it.

PyTorch's DDP leaves each rank to the statistics of its own slice. `nn.SyncBatchNorm` shares them, but on GPUs
alone, and torch.compile cannot trace it there. So it is written out here, in float32, for both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastae.model import AutoEncoder

PIXELS = (0, 2, 3)
"""The axes of (N, C, H, W) that a channel's statistics are taken over."""


class _Normalize(torch.autograd.Function):
    """(N, C, H, W), weight and bias (C,) -> normalised in the input's dtype; mean, variance (C,) in float32.

    Kept for the backward pass is the input as it is, not its float32.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = _mean_over_ranks(input.float().mean(PIXELS))
        centred = input.float() - _wide(mean)
        # A second pass: the mean square less the squared mean would cancel if a channel's mean is large.
        variance = _mean_over_ranks(centred.square().mean(PIXELS))
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(input, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return (centred * _wide(inverse * weight) + _wide(bias)).to(input.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        input, weight, mean, inverse = ctx.saved_tensors
        normalised, gradient = (input.float() - _wide(mean)) * _wide(inverse), gradient.float()
        of_bias, of_weight = gradient.sum(PIXELS), (gradient * normalised).sum(PIXELS)
        shared = _mean_over_ranks(torch.stack([of_bias, of_weight])) / input[:, 0].numel()
        of_input = gradient - _wide(shared[0]) - normalised * _wide(shared[1])
        return (of_input * _wide(inverse * weight)).to(input.dtype), of_weight, of_bias, None


def _mean_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _wide(values: Tensor) -> Tensor:
    """(C,) as (1, C, 1, 1), which broadcasts against images."""
    return values.view(1, -1, 1, 1)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """As `nn.BatchNorm2d`: (N, C, H, W), the same N on every rank, normalised over all of them."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normalised, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps)
        self._track(mean, variance, dist.get_world_size() * input[:, 0].numel())
        return normalised

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Updates the running statistics as `nn.BatchNorm2d` does: by the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def synchronize(model: AutoEncoder) -> None:
    """Has every batch norm of the model normalise over all ranks; its state dict keeps its names."""
    for part in (model.encoder, model.decoder):
        for place, layer in enumerate(part):
            if isinstance(layer, nn.BatchNorm2d):
                other = SyncBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
                part[place] = other.to(layer.weight.device)
                other.load_state_dict(layer.state_dict())
