"""`Loader`: the batches of image files for anybody's training loop, epoch by epoch or without end.

A batch is a function of (seed, iteration), so that a loader can continue at any iteration.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.jpeg import FileFault
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.batch_source import BatchSource
from fastae.utils.arguments import Range, require_int

ITERATION = Range(0, 2**63 - 1)


class Loader:
    """Yields batches float32 (N, 3, S, S) in [0, 1], channels-last, on its device. Made by `open_loader`.

    `len(loader)` is the number of batches per epoch. `iter(loader)` yields the batches of one epoch, and the
    next `iter(loader)` those of the next epoch.

    Attributes:
        source: makes the batches.
        skipped: the files that cannot be used. Each has a `path` and a `fault`.
    """

    def __init__(self, source: BatchSource, files: ImageFiles, skipped: Sequence[FileFault] = ()) -> None:
        self.source = source
        self.skipped = skipped
        self._files = files
        self._epochs = 0

    def __repr__(self) -> str:
        return (
            f"Loader(kind={self.kind!r}, images={len(self._files)}, batch_size={self.batch_size}, "
            f"image_size={self.source.decoder.crop_resize.size}, device={str(self.device)!r})"
        )

    @property
    def kind(self) -> str:
        """How the batches are made: "dali", "host" or "resident"."""
        return self.source.kind

    @property
    def note(self) -> str:
        """Why `auto` chose this kind, in words."""
        return self.source.note

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.source.device

    @property
    def batch_size(self) -> int:
        """The number of images in a batch of all ranks."""
        return self.source.sampler.batch_size

    @property
    def paths(self) -> Sequence[str]:
        """The file of each image by index. A bad file is replaced by that of another image."""
        return self._files.paths

    def __len__(self) -> int:
        return self.source.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        start = len(self) * self._epochs
        self._epochs += 1
        return itertools.islice(self.batches(start), len(self))

    def indices(self, iteration: int) -> np.ndarray:
        """The images of a batch on all ranks: indices of `paths`, int64 (N,)."""
        return self.source.sampler.indices(iteration)

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the batches of iterations start, start + 1, ..., without end.

        Raises SettingError if `start` is not a valid iteration number.
        """
        return self.source.batches(require_int(start, "start", ITERATION))
