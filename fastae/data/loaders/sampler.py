"""The images of each batch and all random parameters, as a function of (seed, iteration) only.

Epoch e visits the images in a permutation drawn from (seed, e). The epochs follow each other without a gap,
and batch i consists of `batch_size` consecutive images. So each image comes exactly once per epoch, and a
batch may contain images of two epochs. The flips and color changes of batch i are drawn from (seed, i). There
is no state: a loader that starts at iteration i yields the same batches as one that started at 0.

Without shuffling, an epoch visits the images in order and starts with a new batch, so that the last batch of
an epoch may be smaller. Its parts for several ranks may differ by one image. If it has fewer images than
ranks, the last ranks have one batch less per epoch.

Only the raw 64-bit words of NumPy's Philox generator are used. NumPy guarantees that they never change, but
does not guarantee this for `Generator.permutation` and `uniform`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastae.experiment.augment import Augmentation, AugmentParams

# The second word of the generator's key keeps the two streams of one seed apart.
PERMUTATIONS, PARAMETERS = 0, 1


class BatchParams(NamedTuple):
    """The images of a batch and their changes: arrays (N,) of NumPy or PyTorch."""

    indices: Any
    """The images' indices, int64."""

    augment: AugmentParams


@dataclass(frozen=True)
class Sampler:
    """The endless sequence of batches, or of one of `parts` equal parts of each batch."""

    count: int
    """The number of images."""

    batch_size: int
    """The number of images in a whole batch."""

    seed: int
    augmentation: Augmentation

    part: int = 0
    """The index of this part, from 0."""

    parts: int = 1
    """The number of parts of each batch."""

    flip: bool = True
    """Whether images are flipped left-right, each with a probability of 1/2."""

    shuffle: bool = True
    """Whether each epoch visits the images in a new random order."""

    @property
    def part_size(self) -> int:
        """The most images in this part of a batch. The last batch of an epoch may be smaller."""
        return self.batch_size // self.parts

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches per epoch. If shuffled, the incomplete last one counts for the next epoch."""
        whole, left_over = divmod(self.count, self.batch_size)
        return whole + (not self.shuffle and left_over > self.part)

    def length(self, iteration: int) -> int:
        """The number of images in this part of a batch."""
        here = self._here(iteration)
        return here.stop - here.start

    def _here(self, iteration: int) -> slice:
        """The positions of this part in a batch."""
        length = self.batch_size
        if not self.shuffle:
            length = min(length, self.count - iteration % self.batches_per_epoch * length)
        share, left_over = divmod(length, self.parts)
        first = self.part * share + min(self.part, left_over)
        return slice(first, first + share + (self.part < left_over))

    def at(self, iteration: int) -> BatchParams:
        """Returns this part of a batch. It takes about 10 us, plus a permutation per epoch."""
        here = self._here(iteration)
        fields = len(AugmentParams._fields)
        words = _words(self.seed, PARAMETERS, iteration, number=fields * self.batch_size)
        uniform = (words >> np.uint64(11)) * 2.0**-53  # the usual construction of a float64 in [0, 1)
        params = self.augmentation.params(uniform.reshape(fields, self.batch_size)[:, here])
        return BatchParams(self.indices(iteration)[here], params._replace(flip=params.flip & self.flip))

    def part_indices(self, iteration: int) -> np.ndarray:
        """The images of this part of a batch: int64 (N,)."""
        return self.indices(iteration)[self._here(iteration)]

    def indices(self, iteration: int) -> np.ndarray:
        """The images of a whole batch, of all parts: int64 (N,)."""
        if not self.shuffle:
            first = iteration % self.batches_per_epoch * self.batch_size
            return np.arange(first, min(first + self.batch_size, self.count))
        positions = np.arange(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, self.count)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permutation(self.seed, int(epoch), self.count)[offsets[here]]
        return indices


# A batch has images of at most two epochs, except for tiny data sets, whose permutations are cheap.
@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in one epoch: int64, each of 0..count-1 once."""
    return np.argsort(_words(seed, PERMUTATIONS, epoch, number=count), kind="stable")


def _words(seed: int, stream: int, counter: int, number: int) -> np.ndarray:
    # `counter` is the top word, while Philox counts up in the lowest one, so that streams never overlap.
    generator = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter])
    return generator.random_raw(number)
