"""The operations on decoded images on a GPU, in PyTorch: flip, brightness, contrast, saturation, format.

    stored images (M, H, 3, W) uint8    -> `gather`   \
    gathered images (N, H, 3, W) uint8  -> `augment`   -> (N, 3, H, W), channels-last, in the output's format
    DALI's images (N, 3, H, W) float32  -> `formatted`/

Each line is one compiled function. On a CPU, `fastae.data.loaders.kernel` does the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.sampler import BatchParams
from fastae.device.compiling import allow_recompiling
from fastae.experiment import augment
from fastae.experiment.augment import UNIT, AugmentParams

Norm = list[list[float]]
"""`OutputFormat.norm`."""

IDENTITY = OutputFormat().norm.tolist()


def pack_params(params: BatchParams, pinned: bool = False) -> Tensor:
    """Packs the parameters of a batch into int32 (fields, N), so that one copy to a GPU suffices.

    The rows are the indices, the flips, and the bits of the other parameters, which are float32.
    """
    flip, *floats = params.augment
    packed = torch.empty(2 + len(floats), len(flip), dtype=torch.int32, pin_memory=pinned)
    rows = packed.numpy()
    rows[0], rows[1] = params.indices, flip
    rows[2:].view(np.float32)[:] = floats
    return packed


def unpack_params(packed: Tensor) -> BatchParams:
    """Unpacks the parameters of a batch, the inverse of `pack_params`."""
    indices, flip = packed[:2].unbind()
    return BatchParams(indices.long(), AugmentParams(flip.bool(), *packed[2:].view(torch.float32).unbind()))


class PixelOps:
    """The operations on a GPU. The compiled and the eager functions have the same results.

    Args:
        output: the format of the batches.
        compiled: whether torch.compile is used.
    """

    def __init__(self, output: OutputFormat, compiled: bool) -> None:
        if compiled:
            allow_recompiling()

        def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            function = functools.partial(function, output.dtype, output.norm.tolist())
            return torch.compile(function, dynamic=False) if compiled else function

        self._gather = wrap(_gather)
        self._augment = wrap(_augment)
        self._format = wrap(_formatted)
        self._as_it_is = output == OutputFormat()

    def gather(self, store: Tensor, means: Tensor, packed: Tensor) -> Tensor:
        """Gathers images of a store, flips and augments them.

        Args:
            store: uint8 (M, H, 3, W).
            means: the channel means of the store's images, float32 (M, 3) in [0, 255].
            packed: the packed parameters (`pack_params`).

        Returns:
            (N, 3, H, W), channels-last, in the output's format.
        """
        return self._gather(store, means, packed.to(store.device, non_blocking=True))

    def augment(self, pixels: Tensor, means: Tensor, packed: Tensor) -> Tensor:
        """Like `gather`, for images that are gathered already: uint8 (N, H, 3, W), means (N, 3)."""
        return self._augment(pixels, means, packed)

    def formatted(self, images: Tensor) -> Tensor:
        """Converts images, float32 (N, 3, H, W) in [0, 1], channels-last, to the output's format."""
        return images if self._as_it_is else self._format(images)


def channel_means(pixels: Tensor) -> Tensor:
    """The mean of each channel: (N, H, 3, W) -> (N, 3) float32, in the same range."""
    return pixels.float().mean((1, 3))


def to_batch(pixels: Tensor) -> Tensor:
    """Makes a batch without augmentation: (N, H, 3, W) in [0, 255] -> float32 (N, 3, H, W) in [0, 1].

    The result is channels-last.
    """
    batch = (pixels.float() * UNIT).transpose(1, 2)
    return batch.contiguous(memory_format=torch.channels_last)


class _Planes:
    """`fastae.experiment.augment.Arrays` for PyTorch, with a red, a green and a blue tensor."""

    @staticmethod
    def highest(channels: Sequence[Tensor]) -> Tensor:
        return functools.reduce(torch.maximum, channels)

    @staticmethod
    def lowest(channels: Sequence[Tensor]) -> Tensor:
        return functools.reduce(torch.minimum, channels)

    @staticmethod
    def maximum(x: Tensor, y: float) -> Tensor:
        return x.clamp(min=y)

    @staticmethod
    def clamp(x: Tensor, low: float, high: Tensor | float) -> Tensor:
        return torch.minimum(x, high).clamp(min=low) if isinstance(high, Tensor) else x.clamp(low, high)


def _gather(dtype: torch.dtype, norm: Norm, store: Tensor, means: Tensor, packed: Tensor) -> Tensor:
    indices = unpack_params(packed).indices
    return _augment(dtype, norm, store[indices], means[indices], packed)


def _augment(dtype: torch.dtype, norm: Norm, pixels: Tensor, means: Tensor, packed: Tensor) -> Tensor:
    """Flips images and changes their colors; the same kernel makes the result channels-last."""
    params = unpack_params(packed).augment
    flipped = torch.where(params.flip[:, None, None, None], pixels.flip(3), pixels)
    changed = augment.color_jitter(
        [flipped[:, :, channel].float() for channel in range(3)],
        [means[:, channel, None, None] for channel in range(3)],
        params.map(lambda values: values[:, None, None]),
        arrays=_Planes,
    )
    return _formatted(dtype, norm, torch.stack(changed, dim=1))


def _formatted(dtype: torch.dtype, norm: Norm, images: Tensor) -> Tensor:
    """Converts images (N, 3, H, W) in [0, 1] to a batch, channels-last."""
    if dtype == torch.uint8:
        images = (images * 255).round()
    elif norm != IDENTITY:  # with numbers: a tensor of them would be an upload that waits for the device
        channels = zip(images.unbind(1), *norm, strict=True)
        images = torch.stack([(channel - mean) * scale for channel, mean, scale in channels], dim=1)
    return images.to(dtype).contiguous(memory_format=torch.channels_last)
