"""What makes the batches of a loader: the interface of the kinds `dali`, `host` and `resident`.

Every batch is a function of (seed, iteration). So the iteration number is a source's whole state, and all
kinds yield the same batches (resident and host up to the rounding of their stored pixels). A training step
takes the inputs and makes the batch itself; a user's loop takes finished batches from a `Loader`.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.sampler import BatchParams, Sampler
from fastae.utils.arguments import LoaderKind


class BatchSource(ABC):
    """Yields batches (N, 3, H, W), channels-last, on its device, in the decoder's output format."""

    kind: LoaderKind

    note: str = ""
    """Why `auto` chose this kind, in words."""

    def __init__(self, sampler: Sampler, decoder: Decoder) -> None:
        self.sampler = sampler
        self.decoder = decoder

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.decoder.device

    @property
    def compiles(self) -> bool:
        """Whether the first batch waits for torch.compile."""
        return self.decoder.on_gpu and self.decoder.compiled

    def reseeded(self, seed: int) -> Self:
        """Returns a source of the same images in another order. It shares the files or stored pixels."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, seed=seed)
        return other

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the batches of iterations start, start + 1, ..., without end."""
        return itertools.starmap(self.make_batch, self.inputs(start))

    @abstractmethod
    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yields the inputs from which `make_batch` makes a batch, from iteration `start` on, without end.

        They are tensors of fixed shapes on the device or in pinned memory. On a CPU they are the batches.
        """

    @abstractmethod
    def make_batch(self, *inputs: Tensor) -> Tensor:
        """Makes a batch from its inputs. A training step may compile and capture this as a part of itself."""

    def example(self) -> tuple[Tensor, ...]:
        """Returns inputs of the right shapes, without DALI or a thread: a step is captured before that."""
        images = torch.rand(self.sampler.part_size, 3, *self.decoder.crop_resize.shape, device=self.device)
        return (images.to(self.decoder.output.dtype, memory_format=torch.channels_last),)

    def params(self, start: int) -> Iterator[BatchParams]:
        """Yields the parameters of the batches of iterations start, start + 1, ..., without end."""
        return map(self.sampler.at, itertools.count(start))
