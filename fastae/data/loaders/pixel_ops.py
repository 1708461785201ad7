r"""The work on pixels in PyTorch, for decoded images: resize, flip, brightness, contrast, saturation.

On a CPU this is several times faster than the same arithmetic in DALI's graph: DALI's resize and its
expressions there are scalar code, while each pass here is one vectorised loop that `torch.compile`
makes.

    crops (N, L, L, 3) uint8 -> `augment_crops` \
    stored images (M, S, 3, S) uint8 -> `gather`  -> (N, 3, S, S), channels-last, in [0, 1]
    gathered ones (N, S, 3, S) uint8 -> `augment` |
    resized and flipped (N, 3, S, S) -> `color`  /

Stored pixels lie in rows of three planes: a loop runs along a row of one channel and has all three channels
of a pixel at hand. Crops are shrunk from top to bottom, turned over so that columns lie in memory as rows do,
shrunk from left to right and colored: no loop ever gathers along a row. The last pass turns them back, which
puts the channels side by side. A few images at a time go through all passes, so that they stay in the cache.
On a GPU each line above is one compiled function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastae import augment
from fastae.augment import UNIT
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.sampler import BatchParams


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


CHUNK = 8
"""Images that go through the passes together: the fastest of 4, 8, 16 and 64."""


class PixelOps:
    """The passes over pixels, compiled or eager: the same functions, the same results.

    threads: CPU threads of those over crops, which run beside a decoder's threads.
    """

    def __init__(self, crop_resize: CropResize, compiled: bool, threads: int = 1) -> None:
        self._crop_resize = crop_resize

        def wrap(function: Callable, options: dict[str, Any] | None = None) -> Callable:
            return torch.compile(function, dynamic=False, options=options) if compiled else function

        # Threads that wait for each other at the end of every pass take the cores from the decoder.
        beside = {"cpp.threads": threads}
        # Apart: one kernel for several would compute an earlier one's results anew for each tap.
        self._shrink_rows = wrap(_shrink_rows, beside)
        self._turn = wrap(_turn, beside)
        self._shrink_columns = wrap(_shrink_columns, beside)
        self._augment_columns = wrap(_augment_columns, beside)
        self._color_jitter = wrap(_color_jitter)
        self._color_on_gpu = wrap(_color_on_gpu)
        self._augment_on_gpu = wrap(_augment_on_gpu)
        self._gather_on_gpu = wrap(_gather_on_gpu)
        self._selected: Tensor | None = None

    def resize(self, crops: Sequence[Tensor] | Tensor) -> Tensor:
        """Square crops (L, L, 3) uint8 -> (N, S, 3, S) float32 in [0, 255].

        A tensor (N, L, L, 3) is the fast case. A sequence may hold crops of different sides.
        Bilinear with half-pixel centres, as `tf.image.resize` and DALI's linear interpolation.
        """
        if not isinstance(crops, Tensor):
            return torch.cat([self._resize_any(crop[None]) for crop in crops])
        if self._crop_resize.antialias:
            return self._resize_any(crops)
        size = self._crop_resize.size
        taps = _Taps.of(crops.shape[1], size)
        upright = torch.zeros(CHUNK, dtype=torch.bool)
        columns = [
            self._shrink_columns(self._columns(chunk, taps), upright[: len(chunk)], *taps.turned)
            for chunk in _chunks(crops)
        ]
        return torch.cat(columns).unflatten(1, (size, 3)).transpose(1, 3)

    def _resize_any(self, crops: Tensor) -> Tensor:
        """`resize` without compiling, which each side would need anew."""
        size, antialias = self._crop_resize.size, self._crop_resize.antialias
        planes = crops.permute(0, 3, 1, 2).float().contiguous()
        return functional.interpolate(planes, (size, size), mode="bilinear", antialias=antialias).transpose(
            1, 2
        )

    def augment_crops(self, crops: Sequence[Tensor] | Tensor, params: ParamTensors) -> Tensor:
        """Resized, flipped and augmented crops: float32 (N, 3, S, S), channels-last, in [0, 1]."""
        if not isinstance(crops, Tensor) or self._crop_resize.antialias:
            pixels = self.resize(crops)
            pixels = torch.where(params.flip[:, None, None, None], pixels.flip(3), pixels)
            return self.color_jitter(pixels, channel_means(pixels), params)
        size = self._crop_resize.size
        taps = _Taps.of(crops.shape[1], size)
        batch = torch.empty(len(crops), size, size, 3)
        parts = (_chunks(value) for value in (crops, batch.flatten(2), *params[1:]))
        for chunk, place, flip, *colors in zip(*parts, strict=True):
            columns = self._columns(chunk, taps)
            self._turn(self._augment_columns(columns, flip, *taps.turned, *colors), place)
        return batch.permute(0, 3, 1, 2)

    def _columns(self, crops: Tensor, taps: _Taps) -> Tensor:
        """(n, L, L, 3) uint8 -> (n, 3 L, S): shrunk from top to bottom, and turned over."""
        rows = self._shrink_rows(crops.flatten(2), taps.low, taps.high, taps.weight)
        columns = torch.empty(rows.transpose(1, 2).shape)
        self._turn(rows, columns)
        return columns

    def gather(self, store: Tensor, means: Tensor, words: Tensor) -> Tensor:
        """Images of a store, flipped and augmented: float32 (N, 3, S, S), channels-last, in [0, 1].

        store: uint8 (M, S, 3, S). means: of its images, float32 (M, 3) in [0, 255].
        words: of `ParamTensors.pack`.
        """
        if store.is_cuda:
            return self._gather_on_gpu(store, means, words.to(store.device, non_blocking=True))
        params = ParamTensors.unpack(words)
        return self.color_jitter(self._select(store, params), means[params.indices], params)

    def augment(self, pixels: Tensor, means: Tensor, words: Tensor) -> Tensor:
        """`gather`'s result for images that were gathered already: uint8 (N, S, 3, S), means (N, 3)."""
        return self._augment_on_gpu(pixels, means, words)

    def color(self, images: Tensor, words: Tensor) -> Tensor:
        """Brightness, contrast and saturation alone: (N, 3, S, S) in [0, 255] -> the same in [0, 1]."""
        return self._color_on_gpu(images, words.to(images.device, non_blocking=True))

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
        # Interleaved by PyTorch's copy: on a CPU twice as fast as by stores in the compiled loop.
        return self._color_jitter(pixels, means, *colors).contiguous(memory_format=torch.channels_last)


def channel_means(pixels: Tensor) -> Tensor:
    """(N, S, 3, S) -> (N, 3) float32, in the same range."""
    return pixels.float().mean((1, 3))


def to_batch(pixels: Tensor) -> Tensor:
    """(N, S, 3, S) in [0, 255], not augmented -> float32 (N, 3, S, S), channels-last, in [0, 1]."""
    batch = (pixels.float() * UNIT).transpose(1, 2)
    return batch.contiguous(memory_format=torch.channels_last)


def _chunks(values: Tensor) -> tuple[Tensor, ...]:
    return values.tensor_split(-(-len(values) // CHUNK))


@dataclass(frozen=True)
class _Taps:
    """Bilinear sampling of `side` positions at `size` places: two neighbours and a weight for each.

    low, high: int64 (S,); weight: float32, of the second. turned: the same for columns of three channels,
    (2, 3 S): as they are, and flipped.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    turned: tuple[Tensor, Tensor, Tensor]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(side: int, size: int) -> _Taps:
        centres = ((torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5).clamp(0, side - 1)
        low = centres.floor().long()
        high = (low + 1).clamp(max=side - 1)
        weight = (centres - low).float()

        def both_ways(values: Tensor) -> Tensor:
            return torch.stack([values, values.flip(0)])[:, :, None].expand(2, size, 3)

        low_columns, high_columns = (
            (3 * both_ways(values) + torch.arange(3)).flatten(1) for values in (low, high)
        )
        return _Taps(low, high, weight, (low_columns, high_columns, both_ways(weight).flatten(1)))


def _shrink_rows(crops: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """(n, L, 3 L) uint8 -> (n, S, 3 L) float32."""
    above, below = crops[:, low].float(), crops[:, high].float()
    return above + (below - above) * weight[:, None]


def _shrink_columns(columns: Tensor, flip: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """(n, 3 L, S) -> (n, 3 S, S), by the `turned` taps."""
    images, way = torch.arange(len(columns))[:, None], flip.long()
    left, right = columns[images, low[way]], columns[images, high[way]]
    return left + (right - left) * weight[way][:, :, None]


def _augment_columns(
    columns: Tensor, flip: Tensor, low: Tensor, high: Tensor, weight: Tensor, *colors: Tensor
) -> Tensor:
    """`_shrink_columns`, then brightness, contrast and saturation: (n, 3 S, S) in [0, 1]."""
    pixels = _shrink_columns(columns, flip, low, high, weight).unflatten(1, (columns.shape[2], 3))
    return torch.stack(_jittered(pixels, channel_means(pixels), *colors), dim=2).flatten(1, 2)


def _turn(values: Tensor, place: Tensor) -> None:
    """Transposes (n, A, B) into `place` (n, B, A)."""
    place.copy_(values.transpose(1, 2))


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


def _jittered(
    pixels: Tensor, means: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> list[Tensor]:
    """(N, S, 3, S) in [0, 255] -> three times (N, S, S) in [0, 1]."""
    return augment.color_jitter(
        [pixels[:, :, channel].float() for channel in range(3)],
        [means[:, channel, None, None] for channel in range(3)],
        *(values[:, None, None] for values in (brightness, contrast, saturation)),
        arrays=_Planes,
    )


def _color_jitter(pixels: Tensor, means: Tensor, *colors: Tensor) -> Tensor:
    """(N, S, 3, S) in [0, 255] -> (N, 3, S, S) in [0, 1]."""
    return torch.stack(_jittered(pixels, means, *colors), dim=1)


def _color_jitter_on_gpu(pixels: Tensor, means: Tensor, *colors: Tensor) -> Tensor:
    """`_color_jitter`, and the channels put side by side within the same kernel."""
    return _color_jitter(pixels, means, *colors).contiguous(memory_format=torch.channels_last)


def _color_on_gpu(images: Tensor, words: Tensor) -> Tensor:
    pixels, (_, _, *colors) = images.transpose(1, 2), ParamTensors.unpack(words)
    return _color_jitter_on_gpu(pixels, channel_means(pixels), *colors)


def _augment_on_gpu(pixels: Tensor, means: Tensor, words: Tensor) -> Tensor:
    _, flip, *colors = ParamTensors.unpack(words)
    return _color_jitter_on_gpu(
        torch.where(flip[:, None, None, None], pixels.flip(3), pixels), means, *colors
    )


def _gather_on_gpu(store: Tensor, means: Tensor, words: Tensor) -> Tensor:
    indices = ParamTensors.unpack(words).indices
    return _augment_on_gpu(store[indices], means[indices], words)
