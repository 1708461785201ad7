"""What all loaders have in common: a loader yields the batches of a sampler, made from image files.

Every batch is a function of (seed, iteration). So the iteration number is a loader's whole state, and all
loaders yield the same batches (resident and host up to the rounding of their stored pixels).
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.faults import FileFault
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.pixel_ops import pack_params
from fastae.data.loaders.sampler import Sampler
from fastae.utils.arguments import Range, require_int

LoaderKind = Literal["auto", "dali", "host", "resident"]
"""How batches are made; `fastae.data.loaders.choose` describes the kinds."""

ITERATION = Range(0, 2**63 - 1)


class Loader(ABC):
    """Yields batches float32 (N, 3, S, S) in [0, 1], channels-last, on its device. Made by `open_loader`.

    `len(loader)` is the number of batches per epoch. `iter(loader)` yields the batches of one epoch, and the
    next `iter(loader)` those of the next epoch.
    """

    kind: LoaderKind

    note: str = ""
    """Why `auto` chose this kind, in words."""

    paths: Sequence[str] = ()
    """The file of each image by index. A bad file is replaced by that of another image."""

    skipped: Sequence[FileFault] = ()
    """The files that cannot be used. Each has a `path` and a `fault`."""

    _epochs = 0

    def __init__(self, sampler: Sampler, decoder: Decoder) -> None:
        self.sampler = sampler
        self.decoder = decoder

    def __repr__(self) -> str:
        return (
            f"Loader(kind={self.kind!r}, images={self.sampler.count}, batch_size={self.sampler.batch_size}, "
            f"image_size={self.decoder.crop_resize.size}, device={str(self.device)!r})"
        )

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.decoder.device

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        start = len(self) * self._epochs
        self._epochs += 1
        return itertools.islice(self.batches(start), len(self))

    def reseeded(self, seed: int) -> Self:
        """Returns a loader of the same images in another order. It shares the files or stored pixels."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, seed=seed)
        return other

    def indices(self, iteration: int) -> np.ndarray:
        """The images of a batch on all ranks: indices of `paths`, int64 (N,)."""
        return self.sampler.indices(iteration)

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the batches of iterations start, start + 1, ..., without end.

        Raises SettingError if `start` is not a valid iteration number.
        """
        start = require_int(start, "start", ITERATION)
        return itertools.starmap(self.make_batch, self.inputs(start))

    @abstractmethod
    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yields the inputs from which `make_batch` makes a batch, from iteration `start` on, without end.

        They are tensors of fixed shapes on the device or in pinned memory.
        """

    @abstractmethod
    def make_batch(self, *inputs: Tensor) -> Tensor:
        """Makes a batch from its inputs. A training step may compile and capture this as a part of itself."""

    def example(self) -> tuple[Tensor, ...]:
        """Returns inputs of the right shapes, without DALI or a thread: a step is captured before that."""
        return next(self.inputs())

    def packed_params(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the packed parameters of the batches of iterations start, start + 1, ..., without end."""
        for params in map(self.sampler.at, itertools.count(start)):
            yield pack_params(params, pinned=self.decoder.on_gpu)
