"""Everything random in the data, as a function of (seed, iteration) and of nothing else.

Epoch e visits the images in a permutation drawn from (seed, e); batch i is the i-th run of `batch_size`
images in the endless line of epochs, so that each image comes exactly once an epoch and a batch may
straddle two. Its flips and color changes are drawn from (seed, i). No state: a loader that starts at
iteration i gives what a loader that came from 0 gives there.

Without shuffling, an epoch visits the images in order, and its last batch is shorter if need be: each epoch
begins with a batch of its own.

Only the raw 64-bit words of NumPy's Philox generator are used. NumPy promises that those never change,
which it does not promise of `Generator.permutation` or `uniform`. What needs no chance is `evenly_spaced`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import numpy as np

from fastae.augment import Augmentation

Item = TypeVar("Item")

# The second word of the generator's key keeps the two streams of one seed apart.
PERMUTATIONS, PARAMETERS = 0, 1


@dataclass(frozen=True)
class BatchParams:
    """Which images make up batch i, and how they are augmented. Arrays of length N.

    indices: int64, into the list of images. flip: bool. brightness: float32, added to pixels in [0, 1].
    contrast, saturation: float32 factors.
    """

    iteration: int
    indices: np.ndarray
    flip: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray

    @staticmethod
    def joined(batches: Sequence[BatchParams]) -> BatchParams:
        """Those of several batches, one after the other, as of the first one's iteration."""
        arrays = (
            np.concatenate([getattr(each, field.name) for each in batches])
            for field in fields(BatchParams)[1:]
        )
        return BatchParams(batches[0].iteration, *arrays)


@dataclass(frozen=True)
class Sampler:
    """The endless sequence of batches over `count` images, or this part of `parts` equal ones of each.

    flip: whether images are flipped left-right, by a fair coin each. Only shuffled batches have parts.
    """

    count: int
    batch_size: int
    seed: int
    augmentation: Augmentation
    part: int = 0
    parts: int = 1
    flip: bool = True
    shuffle: bool = True

    @property
    def share(self) -> int:
        """Images in a batch of this part; the most of them if the last of an epoch has fewer."""
        return self.batch_size // self.parts

    @property
    def batches_per_epoch(self) -> int:
        """If shuffled, whole batches: the images that are left over begin the next epoch."""
        whole, left_over = divmod(self.count, self.batch_size)
        return whole + (left_over > 0 and not self.shuffle)

    def size(self, iteration: int) -> int:
        """Images in this batch of this part."""
        if self.shuffle:
            return self.share
        first = iteration % self.batches_per_epoch * self.batch_size
        return min(self.batch_size, self.count - first)

    def at(self, iteration: int) -> BatchParams:
        """One batch. Costs about 10 us, and a permutation once an epoch."""
        words = _words(self.seed, PARAMETERS, iteration, 4 * self.batch_size)
        flip, brightness, contrast, saturation = _uniform(words).reshape(4, self.batch_size)
        ranges = self.augmentation
        first = self.part * self.share
        here = slice(first, first + self.size(iteration))
        return BatchParams(
            iteration=iteration,
            indices=self._indices(iteration)[here],
            flip=(flip[here] < 0.5) & self.flip,
            brightness=_scaled(brightness[here], 0.0, ranges.brightness),
            contrast=_scaled(contrast[here], 1.0, ranges.contrast),
            saturation=_scaled(saturation[here], 1.0, ranges.saturation),
        )

    def iterate(self, start: int = 0) -> Iterator[BatchParams]:
        """The batches of iterations start, start + 1, ..., without end."""
        while True:
            yield self.at(start)
            start += 1

    def _indices(self, iteration: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.batch_size) + iteration % self.batches_per_epoch * self.batch_size
        positions = np.arange(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.count)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permutation(self.seed, int(epoch), self.count)[places[here]]
        return indices


# Two epochs meet in a batch; with tiny data sets more do, and are drawn again: they are tiny.
@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` images in one epoch: int64, each of 0..count-1 once."""
    return np.argsort(_words(seed, PERMUTATIONS, epoch, count), kind="stable")


def _words(seed: int, stream: int, counter: int, number: int) -> np.ndarray:
    # The counter's top word is ours; Philox counts up in the lowest, so streams never meet.
    generator = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter])
    return generator.random_raw(number)


def _uniform(words: np.ndarray) -> np.ndarray:
    # The usual 53-bit construction of a float64 in [0, 1).
    return (words >> np.uint64(11)) * 2.0**-53


def _scaled(uniform: np.ndarray, centre: float, radius: float) -> np.ndarray:
    return (centre + radius * (2 * uniform - 1)).astype(np.float32)
