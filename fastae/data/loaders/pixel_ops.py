r"""The operations on decoded images in PyTorch: resize, flip, brightness, contrast, saturation.

On a CPU this is several times faster than the same arithmetic in DALI's graph: DALI's resize and expressions
are scalar code on a CPU, while each pass here is one vectorised loop that `torch.compile` makes.

    crops (N, L, L, 3) uint8 -> `augment_crops`      \
    stored images (M, S, 3, S) uint8 -> `gather`      -> (N, 3, S, S), channels-last, in [0, 1]
    gathered images (N, S, 3, S) uint8 -> `augment`  /

Stored images consist of rows of three planes, so that a loop along a row of one channel can read all three
channels of a pixel. In the compiled passes, crops are shrunk vertically, transposed, shrunk horizontally, and
their colors changed. Due to the transpose, no loop ever gathers along a row. The last pass transposes them
back, which makes the channels the innermost axis. A few images at a time go through all passes, so that they
stay in the CPU's cache. On a GPU, each line above is one compiled function.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.sampler import BatchParams
from fastae.experiment import augment
from fastae.experiment.augment import UNIT, AugmentParams


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


CHUNK = 8
"""The number of images that go through the passes together: the fastest of 4, 8, 16 and 64."""

EXACT_SIZES = (16, 32, 64, 128)
"""The sizes at which bilinear weights have at most 8 bits, as pixels do: float32 holds every product."""


class PixelOps:
    """The passes over pixels. The compiled and the eager functions have the same results.

    Args:
        crop_resize: the size of the resized images.
        compiled: whether torch.compile is used.
        threads: the number of CPU threads for passes over crops, which compete with the decoder's threads.
    """

    def __init__(self, crop_resize: CropResize, compiled: bool, threads: int = 1) -> None:
        self._crop_resize = crop_resize
        self._compiled = compiled

        def wrap(function: Callable, options: dict[str, Any] | None = None) -> Callable:
            return torch.compile(function, dynamic=False, options=options) if compiled else function

        # Threads that wait for each other after every pass would take cores from the decoder.
        beside = {"cpp.threads": threads}
        # The passes are separate: a fused kernel would recompute a pass for each tap of the next one.
        self._shrink_rows = wrap(_shrink_rows, beside)
        self._transpose = wrap(_transpose, beside)
        self._shrink_columns = wrap(_shrink_columns, beside)
        self._augment_columns = wrap(_augment_columns, beside)
        self._color_jitter = wrap(_color_jitter)
        self._augment_on_gpu = wrap(_augment_on_gpu)
        self._gather_on_gpu = wrap(_gather_on_gpu)
        self._selected: Tensor | None = None

    def resize(self, crops: Sequence[Tensor] | Tensor) -> Tensor:
        """Resizes square crops (L, L, 3) uint8 to (N, S, 3, S) float32 in [0, 255].

        A tensor (N, L, L, 3) is the fast case. A sequence may contain crops of different sides. The
        interpolation is bilinear with half-pixel centres, like `tf.image.resize` and DALI's linear resize.
        """
        # A channel's mean is summed in the order of memory, so the layout decides the last bits of a batch.
        if not isinstance(crops, Tensor):  # torch.compile would compile again for each side
            return torch.cat([self._interpolate(crop[None]).transpose(1, 2) for crop in crops]).contiguous()
        if self._crop_resize.antialias:
            return self._interpolate(crops).contiguous().transpose(1, 2)
        if self._compiled or self._crop_resize.size not in EXACT_SIZES:
            return self._shrink(crops)
        return self._interpolate(crops).permute(0, 3, 1, 2).contiguous().transpose(1, 3)

    def _interpolate(self, crops: Tensor) -> Tensor:
        """PyTorch's resize: (n, L, L, 3) uint8 -> (n, 3, S, S) float32, channels-last, its fastest layout.

        Except for EXACT_SIZES, its positions are rounded to float32, and pixels differ by up to 0.02.
        """
        size, antialias = self._crop_resize.size, self._crop_resize.antialias
        images = crops.permute(0, 3, 1, 2).float()
        return functional.interpolate(images, (size, size), mode="bilinear", antialias=antialias)

    def _shrink(self, crops: Tensor) -> Tensor:
        """`resize` in passes that torch.compile makes."""
        size = self._crop_resize.size
        taps = _Taps.of(crops.shape[1], size)
        upright = torch.zeros(CHUNK, dtype=torch.bool)
        columns = []
        for here in _chunks(len(crops)):
            chunk = self._columns(crops[here], taps)
            columns.append(self._shrink_columns(chunk, upright[: len(chunk)], *taps.transposed))
        return torch.cat(columns).unflatten(1, (size, 3)).transpose(1, 3)

    def augment_crops(self, crops: Sequence[Tensor] | Tensor, packed: Tensor) -> Tensor:
        """Resizes, flips and augments crops by packed parameters: (N, 3, S, S), channels-last, in [0, 1]."""
        params = unpack_params(packed).augment
        if not self._compiled or not isinstance(crops, Tensor) or self._crop_resize.antialias:
            pixels = _flipped(self.resize(crops), params)
            return self.color_jitter(pixels, channel_means(pixels), params)
        size = self._crop_resize.size
        taps = _Taps.of(crops.shape[1], size)
        batch = torch.empty(len(crops), size, size, 3)
        for here in _chunks(len(crops)):
            columns = self._columns(crops[here], taps)
            changed = self._augment_columns(columns, taps.transposed, params.map(itemgetter(here)))
            self._transpose(changed, batch.flatten(2)[here])
        return batch.permute(0, 3, 1, 2)

    def _columns(self, crops: Tensor, taps: _Taps) -> Tensor:
        """(n, L, L, 3) uint8 -> (n, 3 L, S): shrinks crops vertically, and transposes them."""
        rows = self._shrink_rows(crops.flatten(2), taps.low, taps.high, weight=taps.weight)
        columns = torch.empty(rows.transpose(1, 2).shape)
        self._transpose(rows, columns)
        return columns

    def gather(self, store: Tensor, means: Tensor, packed: Tensor) -> Tensor:
        """Gathers images of a store, flips and augments them.

        Args:
            store: uint8 (M, S, 3, S).
            means: the channel means of the store's images, float32 (M, 3) in [0, 255].
            packed: the packed parameters (`pack_params`).

        Returns:
            float32 (N, 3, S, S), channels-last, in [0, 1].
        """
        if store.is_cuda:
            return self._gather_on_gpu(store, means, packed.to(store.device, non_blocking=True))
        indices, params = unpack_params(packed)
        return self.color_jitter(self._select(store, indices, params.flip), means[indices], params)

    def augment(self, pixels: Tensor, means: Tensor, packed: Tensor) -> Tensor:
        """Like `gather`, for images that are gathered already: uint8 (N, S, 3, S), means (N, 3)."""
        return self._augment_on_gpu(pixels, means, packed)

    def _select(self, store: Tensor, indices: Tensor, flips: Tensor) -> Tensor:
        """Gathers and flips images: uint8 (N, S, 3, S). The next call overwrites the result."""
        shape = (len(indices), *store.shape[1:])
        if self._selected is None or self._selected.shape != shape:
            self._selected = torch.empty(shape, dtype=torch.uint8)
        # The memory is reused: new pages would cost more than the copy.
        selected = torch.index_select(store, 0, indices, out=self._selected)
        # Images are flipped one by one: PyTorch flips bytes fast, but masks and scatters them slowly.
        for index in flips.nonzero().flatten().tolist():
            selected[index] = selected[index].flip(2)
        return selected

    def color_jitter(self, pixels: Tensor, means: Tensor, params: AugmentParams) -> Tensor:
        """Changes the colors of images (N, S, 3, S), with channel means (N, 3), both in [0, 255].

        Returns float32 (N, 3, S, S), channels-last, in [0, 1].
        """
        # PyTorch's copy interleaves the channels, on a CPU twice as fast as stores in the compiled loop.
        return self._color_jitter(pixels, means, params).contiguous(memory_format=torch.channels_last)


def channel_means(pixels: Tensor) -> Tensor:
    """The mean of each channel: (N, S, 3, S) -> (N, 3) float32, in the same range."""
    return pixels.float().mean((1, 3))


def to_batch(pixels: Tensor) -> Tensor:
    """Makes a batch without augmentation: (N, S, 3, S) in [0, 255] -> float32 (N, 3, S, S) in [0, 1].

    The result is channels-last.
    """
    batch = (pixels.float() * UNIT).transpose(1, 2)
    return batch.contiguous(memory_format=torch.channels_last)


def _chunks(count: int) -> Iterator[slice]:
    """Divides images into parts of at most CHUNK, of the same length but for one image."""
    parts = -(-count // CHUNK)
    bounds = (count * part // parts for part in range(parts + 1))
    return itertools.starmap(slice, itertools.pairwise(bounds))


@dataclass(frozen=True)
class _Taps:
    """Bilinear sampling of `side` pixels at `size` positions."""

    low: Tensor
    """The index of the first of two neighbours for each position, int64 (S,)."""

    high: Tensor
    """The index of the second neighbour, int64 (S,)."""

    weight: Tensor
    """The weight of the second neighbour, float32 (S,)."""

    transposed: tuple[Tensor, Tensor, Tensor]
    """The three tensors for transposed images, with a row per column and channel: each (2, 3 S).

    The first row is for images as they are, the second for flipped images.
    """

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
        transposed = (low_columns, high_columns, both_ways(weight).flatten(1))
        return _Taps(low, high, weight, transposed=transposed)


def _shrink_rows(crops: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Shrinks crops vertically: (n, L, 3 L) uint8 -> (n, S, 3 L) float32."""
    above, below = crops[:, low].float(), crops[:, high].float()
    return above + (below - above) * weight[:, None]


def _shrink_columns(columns: Tensor, flip: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Shrinks and flips transposed crops by the `transposed` taps: (n, 3 L, S) -> (n, 3 S, S)."""
    images, way = torch.arange(len(columns))[:, None], flip.long()
    left, right = columns[images, low[way]], columns[images, high[way]]
    return left + (right - left) * weight[way][:, :, None]


def _augment_columns(columns: Tensor, taps: tuple[Tensor, ...], params: AugmentParams) -> Tensor:
    """Applies `_shrink_columns` and then changes the colors: (n, 3 S, S) in [0, 1]."""
    pixels = _shrink_columns(columns, params.flip, *taps).unflatten(1, (columns.shape[2], 3))
    return torch.stack(_jittered(pixels, channel_means(pixels), params), dim=2).flatten(1, 2)


def _transpose(values: Tensor, out: Tensor) -> None:
    """Transposes (n, A, B) into `out` (n, B, A)."""
    out.copy_(values.transpose(1, 2))


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


def _flipped(pixels: Tensor, params: AugmentParams) -> Tensor:
    """Flips images (N, S, 3, S) left-right."""
    return torch.where(params.flip[:, None, None, None], pixels.flip(3), pixels)


def _jittered(pixels: Tensor, means: Tensor, params: AugmentParams) -> list[Tensor]:
    """Changes colors: (N, S, 3, S) in [0, 255] -> three tensors (N, S, S) in [0, 1]."""
    return augment.color_jitter(
        [pixels[:, :, channel].float() for channel in range(3)],
        [means[:, channel, None, None] for channel in range(3)],
        params.map(lambda values: values[:, None, None]),
        arrays=_Planes,
    )


def _color_jitter(pixels: Tensor, means: Tensor, params: AugmentParams) -> Tensor:
    """Changes colors: (N, S, 3, S) in [0, 255] -> (N, 3, S, S) in [0, 1]."""
    return torch.stack(_jittered(pixels, means, params), dim=1)


def _augment_on_gpu(pixels: Tensor, means: Tensor, packed: Tensor) -> Tensor:
    """Flips images and changes their colors; the same kernel makes the result channels-last."""
    params = unpack_params(packed).augment
    return _color_jitter(_flipped(pixels, params), means, params).contiguous(
        memory_format=torch.channels_last
    )


def _gather_on_gpu(store: Tensor, means: Tensor, packed: Tensor) -> Tensor:
    indices = unpack_params(packed).indices
    return _augment_on_gpu(store[indices], means[indices], packed)
