"""Batch norm over the whole batch where several ranks share it.

PyTorch's DDP leaves each rank to the statistics of its own slice. `nn.SyncBatchNorm` shares them, but on GPUs
alone, and torch.compile cannot trace it there. So it is written out here, in float32, for both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastae.model import AutoEncoder


class _MeanOverRanks(torch.autograd.Function):
    """The mean over all ranks of a tensor that each has; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _MeanOverRanks.mean(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _MeanOverRanks.mean(gradient)

    @staticmethod
    def mean(values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """As `nn.BatchNorm2d`: (N, C, H, W), the same N on every rank, normalised over all of them."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values, shape = input.float(), (1, -1, 1, 1)
        mean: Tensor = _MeanOverRanks.apply(values.mean((0, 2, 3)))
        centred = values - mean.view(shape)
        # A second pass: the mean square less the squared mean would cancel where a channel's mean is large.
        variance: Tensor = _MeanOverRanks.apply(centred.square().mean((0, 2, 3)))
        self._track(mean.detach(), variance.detach(), dist.get_world_size() * input[:, 0].numel())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as `nn.BatchNorm2d` keeps them: of the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def synchronise(model: AutoEncoder) -> None:
    """Has every batch norm of the model normalise over all ranks; its state dict keeps its names."""
    for part in (model.encoder, model.decoder):
        for place, layer in enumerate(part):
            if isinstance(layer, nn.BatchNorm2d):
                other = SyncBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
                part[place] = other.to(layer.weight.device)
                other.load_state_dict(layer.state_dict())
