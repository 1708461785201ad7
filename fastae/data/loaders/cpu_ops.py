"""Runs `fastae.data.loaders.kernel` in threads, a few batches ahead of the caller.

Each batch is divided among the threads, so that no work needs one thread alone. An image depends neither on
the number of threads nor on the other images of its batch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.sampler import BatchParams
from fastae.experiment.augment import AugmentParams

Crops = Sequence[np.ndarray]
"""Decoded images of any sides, each uint8 (height, width, 3) without gaps in memory."""

Work = tuple[Tensor, Callable[[slice, Tensor], None]]
"""An empty batch, and the function that makes a part of its images in a part of its memory."""

AHEAD = 2
"""The number of batches that are made ahead. More would only take memory."""

BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
"""The type as which the kernel writes a type that numba lacks."""


@dataclass(frozen=True)
class CpuOps:
    """Makes batches of crops and of stored images on a CPU."""

    crop_resize: CropResize
    output: OutputFormat

    threads: int
    """The number of threads that make batches."""

    def resized(self, batches: Iterable[Crops]) -> Iterator[Tensor]:
        """Yields each batch of crops, resized to float32 (N, H, 3, W) in [0, 255]."""
        height, width = self.crop_resize.shape
        return self._run(
            (torch.empty(len(crops), height, 3, width), partial(self._resize, crops)) for crops in batches
        )

    def augmented(self, batches: Iterable[tuple[Crops, AugmentParams]]) -> Iterator[Tensor]:
        """Yields each batch of crops, resized and augmented: (N, 3, H, W), channels-last, in the format."""
        return self._formatted(
            (len(crops), partial(self._augment, crops, params)) for crops, params in batches
        )

    def gathered(self, pixels: Tensor, means: Tensor, batches: Iterable[BatchParams]) -> Iterator[Tensor]:
        """Yields batches of stored images, augmented: (N, 3, H, W), channels-last, in the format.

        Args:
            pixels: the stored images, uint8 (M, H, 3, W).
            means: their channel means, float32 (M, 3) in [0, 255].
            batches: the images and their changes.
        """
        gather = partial(self._gather, pixels, means)
        return self._formatted((len(params.indices), partial(gather, *params)) for params in batches)

    def _formatted(self, works: Iterable[tuple[int, Callable[[slice, Tensor], None]]]) -> Iterator[Tensor]:
        height, width = self.crop_resize.shape
        empty = partial(torch.empty, dtype=self.output.dtype)
        batches = self._run((empty(number, height, width, 3), work) for number, work in works)
        return (images.permute(0, 3, 1, 2) for images in batches)

    def _run(self, works: Iterable[Work]) -> Iterator[Tensor]:
        """Yields each batch in order when its parts are made. An error comes after the batches before it."""
        waiting: deque = deque()

        def finished() -> Tensor:
            batch, parts = waiting.popleft()
            for part in parts:
                part.result()
            return batch

        with ThreadPoolExecutor(self.threads, "pixels") as pool:
            for batch, work in _deferring_errors(works):
                parts = [pool.submit(work, part, batch[part]) for part in _parts(len(batch), self.threads)]
                waiting.append((batch, parts))
                if len(waiting) > AHEAD:
                    yield finished()
            while waiting:
                yield finished()

    def _resize(self, crops: Crops, part: slice, out: Tensor) -> None:
        from fastae.data.loaders.kernel import resize_crops

        if self.crop_resize.antialias:
            torch.stack([self._interpolate(crop) for crop in crops[part]], out=out)
        else:
            resize_crops(_located(crops[part]), out.numpy())

    def _augment(self, crops: Crops, params: AugmentParams, part: slice, out: Tensor) -> None:
        from fastae.data.loaders.kernel import augment_crops

        if self.crop_resize.antialias:
            height, width = self.crop_resize.shape
            pixels = torch.empty(len(out), height, 3, width)
            self._resize(crops, part, pixels)
            params = params.map(lambda values: values[part])
            self._gather(pixels, pixels.mean((1, 3)), np.arange(len(out)), params, slice(None), out)
        else:
            augment_crops(_located(crops[part]), *self._last(params, part, out))

    def _gather(
        self,
        pixels: Tensor,
        means: Tensor,
        indices: np.ndarray,
        params: AugmentParams,
        part: slice,
        out: Tensor,
    ) -> None:
        from fastae.data.loaders.kernel import augment_images

        augment_images(pixels.numpy(), means.numpy(), indices[part], *self._last(params, part, out))

    def _last(self, params: AugmentParams, part: slice, out: Tensor) -> tuple[np.ndarray, ...]:
        """The last three arguments of the kernel's functions."""
        changes = np.stack(params.map(lambda values: values[part]), axis=1, dtype=np.float32)
        bits = out.view(BITS.get(out.dtype, out.dtype)).flatten(2)
        return changes, self.output.norm, bits.numpy()

    def _interpolate(self, crop: np.ndarray) -> Tensor:
        """PyTorch's antialiased resize: uint8 (height, width, 3) -> float32 (H, 3, W). It is 4x slower."""
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
        resized = functional.interpolate(image, self.crop_resize.shape, mode="bilinear", antialias=True)
        return resized[0].transpose(0, 1)


def _deferring_errors(works: Iterable[Work]) -> Iterator[Work]:
    """Yields the works. Instead of one that cannot be had, yields a work that raises the error."""
    try:
        yield from works
    except Exception as error:
        failure = error

        def fail(part: slice, out: Tensor) -> None:
            raise failure

        yield torch.empty(1), fail


def _parts(count: int, number: int) -> Iterator[slice]:
    """Divides `count` images into at most `number` parts of nearly the same length."""
    number = min(count, number)
    return itertools.starmap(slice, itertools.pairwise(count * part // number for part in range(number + 1)))


def _located(crops: Crops) -> np.ndarray:
    """The address, height and width of each crop: int64 (N, 3)."""
    return np.array([(crop.__array_interface__["data"][0], *crop.shape[:2]) for crop in crops])
