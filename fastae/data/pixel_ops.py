r"""The work on pixels in PyTorch, for decoded images: resize, flip, brightness, contrast, saturation.

On a CPU this is several times faster than the same arithmetic in DALI's graph: DALI's resize and its
expressions there are scalar code, while each pass here is one vectorised loop that `torch.compile`
makes. Pixels lie in rows of three planes, (N, S, 3, S): a loop then runs along a row of one channel,
and all three channels of a pixel are at hand for the saturation. Only the last copy puts the channels
side by side, as channels-last is.

    crops (N, L, L, 3) uint8 -> `resize` -> (N, S, 3, S) float32 \
                                                                  -> `color_jitter` -> (N, 3, S, S) in [0, 1]
    stored images (M, S, 3, S) uint8 -> selected, flipped, uint8 /

`gather` does the second line whole. On a GPU that is one compiled function, the last copy included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastae import augment
from fastae.augment import UNIT
from fastae.data.crop_resize import CropResize
from fastae.data.sampler import BatchParams


class ParamTensors(NamedTuple):
    """A batch's numbers as tensors: indices int64, flip bool, the rest float32; all (N,)."""

    indices: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor

    @staticmethod
    def of(params: BatchParams) -> ParamTensors:
        return ParamTensors.unpack(ParamTensors.pack(params))

    @staticmethod
    def pack(params: BatchParams, pinned: bool = False) -> Tensor:
        """int32 (5, N), the floats bit by bit: one copy, from pinned memory, takes them to a GPU."""
        words = torch.empty(
            len(ParamTensors._fields), len(params.indices), dtype=torch.int32, pin_memory=pinned
        )
        rows = words.numpy()
        rows[0], rows[1] = params.indices, params.flip
        rows[2:].view(np.float32)[:] = params.brightness, params.contrast, params.saturation
        return words

    @staticmethod
    def unpack(words: Tensor) -> ParamTensors:
        indices, flip = words[:2].unbind()
        return ParamTensors(indices.long(), flip.bool(), *words[2:].view(torch.float32).unbind())


class PixelOps:
    """The passes over pixels, compiled or eager: the same functions, the same results."""

    def __init__(self, crop_resize: CropResize, compiled: bool) -> None:
        self._crop_resize = crop_resize
        wrap: Callable = functools.partial(torch.compile, dynamic=False) if compiled else lambda f: f
        # Apart, since one kernel for both would resize vertically anew for each horizontal tap.
        self._shrink_rows = wrap(_shrink_rows)
        self._shrink_columns = wrap(_shrink_columns)
        self._color_jitter = wrap(_color_jitter)
        self._color_jitter_on_gpu = wrap(_color_jitter_on_gpu)
        self._augment_on_gpu = wrap(_augment_on_gpu)
        self._gather_on_gpu = wrap(_gather_on_gpu)
        self._selected: Tensor | None = None

    def resize(self, crops: Sequence[Tensor] | Tensor, flip: Tensor | None = None) -> Tensor:
        """Square crops (L, L, 3) uint8 -> (N, S, 3, S) float32 in [0, 255], flipped where asked.

        A tensor (N, L, L, 3) is the fast case. A sequence may hold crops of different sides.
        Bilinear with half-pixel centres, as `tf.image.resize` and DALI's linear interpolation.
        """
        if not isinstance(crops, Tensor):
            flips = [None] * len(crops) if flip is None else flip.split(1)
            return torch.cat(
                [self._resize_any(crop[None], one) for crop, one in zip(crops, flips, strict=True)]
            )
        if self._crop_resize.antialias:
            return self._resize_any(crops, flip)
        return self._resize_batch(crops, flip)

    def _resize_batch(self, crops: Tensor, flip: Tensor | None) -> Tensor:
        taps = _Taps.of(crops.shape[1], self._crop_resize.size)
        rows = self._shrink_rows(crops.flatten(2), taps.low, taps.high, taps.weight)
        chosen = torch.zeros(len(crops), dtype=torch.int64) if flip is None else flip.long()
        planar = self._shrink_columns(
            rows, taps.columns_low[chosen], taps.columns_high[chosen], taps.columns_weight[chosen]
        )
        return planar.unflatten(2, (3, self._crop_resize.size))

    def _resize_any(self, crops: Tensor, flip: Tensor | None) -> Tensor:
        size = (self._crop_resize.size, self._crop_resize.size)
        pixels = functional.interpolate(
            crops.permute(0, 3, 1, 2).float().contiguous(),
            size,
            mode="bilinear",
            antialias=self._crop_resize.antialias,
        )
        if flip is not None:
            pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        return pixels.transpose(1, 2)

    def gather(self, store: Tensor, means: Tensor, words: Tensor) -> Tensor:
        """Images of a store, flipped and augmented: float32 (N, 3, S, S), channels-last, in [0, 1].

        store: uint8 (M, S, 3, S). means: of its images, float32 (M, 3) in [0, 255].
        words: of `ParamTensors.pack`.
        """
        if store.is_cuda:
            return self._gather_on_gpu(store, means, words.to(store.device, non_blocking=True))
        parameters = ParamTensors.unpack(words)
        return self.color_jitter(self._select(store, parameters), means[parameters.indices], parameters)

    def augment(self, pixels: Tensor, means: Tensor, words: Tensor) -> Tensor:
        """`gather`'s result for images that were gathered already: uint8 (N, S, 3, S), means (N, 3)."""
        return self._augment_on_gpu(pixels, means, words)

    def _select(self, store: Tensor, parameters: ParamTensors) -> Tensor:
        """uint8 (N, S, 3, S), flipped where asked; the next call overwrites it."""
        shape = (len(parameters.indices), *store.shape[1:])
        if self._selected is None or self._selected.shape != shape:
            self._selected = torch.empty(shape, dtype=torch.uint8)
        # Into memory that is there already: fresh pages would cost more than the copy.
        selected = torch.index_select(store, 0, parameters.indices, out=self._selected)
        # Half of them, one by one: PyTorch flips bytes quickly, but masks and scatters them slowly.
        for place in parameters.flip.nonzero().flatten().tolist():
            selected[place] = selected[place].flip(2)
        return selected

    def color_jitter(self, pixels: Tensor, means: Tensor, parameters: ParamTensors) -> Tensor:
        """(N, S, 3, S) and channel means (N, 3), both in [0, 255] -> augmented batch.

        float32 (N, 3, S, S), channels-last, in [0, 1].
        """
        colors = parameters.brightness, parameters.contrast, parameters.saturation
        if pixels.is_cuda:
            return self._color_jitter_on_gpu(pixels, means, *colors)
        # Interleaved by PyTorch's copy: on a CPU twice as fast as by stores in the compiled loop.
        return self._color_jitter(pixels, means, *colors).contiguous(memory_format=torch.channels_last)


def channel_means(pixels: Tensor) -> Tensor:
    """(N, S, 3, S) -> (N, 3) float32, in the same range."""
    return pixels.float().mean((1, 3))


def to_batch(pixels: Tensor) -> Tensor:
    """(N, S, 3, S) in [0, 255], not augmented -> float32 (N, 3, S, S), channels-last, in [0, 1]."""
    batch = (pixels.float() * UNIT).transpose(1, 2)
    return batch.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Taps:
    """Bilinear sampling of `side` positions at `size` places: two neighbours and a weight for each.

    low, high: int64 (S,); weight: float32, of the second. columns_*: the same for a row of RGB pixels
    and three planes of results, (2, 3 S): as it is, and flipped.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    columns_low: Tensor
    columns_high: Tensor
    columns_weight: Tensor

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(side: int, size: int) -> _Taps:
        centres = ((torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5).clamp(0, side - 1)
        low = centres.floor().long()
        high = (low + 1).clamp(max=side - 1)
        weight = (centres - low).float()

        def columns(values: Tensor) -> Tensor:
            return torch.stack([values, values.flip(0)])

        channel = torch.arange(3)[None, :, None]
        return _Taps(
            low,
            high,
            weight,
            (3 * columns(low)[:, None] + channel).flatten(1),
            (3 * columns(high)[:, None] + channel).flatten(1),
            columns(weight)[:, None].expand(2, 3, size).flatten(1),
        )


def _shrink_rows(crops: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """(N, L, 3 L) uint8 -> (N, S, 3 L) float32."""
    above, below = crops[:, low].float(), crops[:, high].float()
    return above + (below - above) * weight[:, None]


def _shrink_columns(rows: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """(N, S, 3 L) float32 -> (N, S, 3 S); the taps (N, 3 S) also put channels into planes and flip."""
    shape = (*rows.shape[:2], low.shape[1])
    left = torch.gather(rows, 2, low[:, None].expand(shape))
    right = torch.gather(rows, 2, high[:, None].expand(shape))
    return left + (right - left) * weight[:, None]


class _Planes:
    """`fastae.augment.Arrays` for a red, a green and a blue tensor."""

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


def _color_jitter(
    pixels: Tensor, means: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """(N, S, 3, S) in [0, 255] -> (N, 3, S, S) in [0, 1]."""
    jittered = augment.color_jitter(
        [pixels[:, :, channel].float() for channel in range(3)],
        [means[:, channel, None, None] for channel in range(3)],
        *(values[:, None, None] for values in (brightness, contrast, saturation)),
        arrays=_Planes,
    )
    return torch.stack(jittered, dim=1)


def _color_jitter_on_gpu(pixels: Tensor, means: Tensor, *colors: Tensor) -> Tensor:
    """`_color_jitter`, and the channels put side by side within the same kernel."""
    return _color_jitter(pixels, means, *colors).contiguous(memory_format=torch.channels_last)


def _augment_on_gpu(pixels: Tensor, means: Tensor, words: Tensor) -> Tensor:
    _, flip, *colors = ParamTensors.unpack(words)
    return _color_jitter_on_gpu(
        torch.where(flip[:, None, None, None], pixels.flip(3), pixels), means, *colors
    )


def _gather_on_gpu(store: Tensor, means: Tensor, words: Tensor) -> Tensor:
    indices = ParamTensors.unpack(words).indices
    return _augment_on_gpu(store[indices], means[indices], words)
