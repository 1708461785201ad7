"""Batch norm over the whole batch where several ranks share it.

PyTorch's DDP leaves each rank to the statistics of its own slice; `nn.SyncBatchNorm` shares them, on GPUs
alone. For CPU ranks the same is written out here, in float32.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from fastae.model import AutoEncoder


class _CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """As `nn.SyncBatchNorm`: (N, C, H, W), the same N on every rank, normalised over all of them."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
        mean, square = all_reduce(moments) / dist.get_world_size()
        variance = square - mean.square()
        self._track(mean.detach(), variance.detach(), dist.get_world_size() * input[:, 0].numel())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, 1, 1)
        normalised = (values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as `nn.BatchNorm2d` keeps them: of the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def synchronise(model: AutoEncoder) -> None:
    """Has every batch norm of the model normalise over all ranks; its state dict keeps its names."""
    shared = nn.SyncBatchNorm if next(model.parameters()).is_cuda else _CpuSyncBatchNorm2d
    for part in (model.encoder, model.decoder):
        for place, layer in enumerate(part):
            if isinstance(layer, nn.BatchNorm2d):
                other = shared(layer.num_features, layer.eps, layer.momentum or 0.0)
                part[place] = other.to(layer.weight.device)
                other.load_state_dict(layer.state_dict())
