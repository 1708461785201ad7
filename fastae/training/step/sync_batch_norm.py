"""Batch norm over the whole batch if several ranks share it.

With PyTorch's DDP each rank uses the statistics of its own part of the batch. `nn.SyncBatchNorm` shares them,
but only on GPUs, and torch.compile cannot trace it. So this module implements it in
float32, for CPUs too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastae.errors import SettingError
from fastae.training.step.layers import replace_layers

PIXELS = (0, 2, 3)
"""The axes of (N, C, H, W) over which the statistics of a channel are taken."""


class _Normalize(torch.autograd.Function):
    """Normalises (N, C, H, W) over all ranks, with weight and bias (C,).

    Returns the normalised input in its dtype, and mean and variance (C,) in float32. The input is kept for
    the backward pass in its own dtype, not in float32, which would take more memory.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = _mean_over_ranks(input.float().mean(PIXELS))
        centred = input.float() - _wide(mean)
        # A second pass: the mean square minus the squared mean would cancel if a channel's mean is large.
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
    """Returns the mean of a tensor over the ranks. All ranks must call."""
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _wide(values: Tensor) -> Tensor:
    """Returns values (C,) as (1, C, 1, 1), which broadcasts against images."""
    return values.view(1, -1, 1, 1)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all ranks, of inputs (N, C, H, W) with the same N on every rank."""

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


def synchronize(model: nn.Module) -> int:
    """Makes every batch norm of the model normalise over all ranks; returns how many there were.

    The state dict keeps its names. Raises SettingError if a batch norm is of a kind that cannot be replaced.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and not _can_synchronize(layer):
            raise SettingError(
                "model",
                f"cannot be trained on several ranks: {name} is a {type(layer).__name__}, whose statistics "
                "fastae cannot share; use nn.BatchNorm2d with its default options",
            )
    return replace_layers(model, nn.BatchNorm2d, _synchronized)


def _can_synchronize(layer: _BatchNorm) -> bool:
    """Returns whether SyncBatchNorm2d does the same as this layer."""
    is_default = layer.affine and layer.track_running_stats and layer.momentum is not None
    return type(layer) in (nn.BatchNorm2d, SyncBatchNorm2d) and is_default


def _synchronized(layer: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """Makes a SyncBatchNorm2d with the weights and statistics of a layer."""
    other = SyncBatchNorm2d(layer.num_features, layer.eps, layer.momentum).to(layer.weight.device)
    other.load_state_dict(layer.state_dict())
    return other
