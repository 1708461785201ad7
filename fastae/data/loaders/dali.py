"""Batches that are decoded from the files in every epoch: `--loader dali`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from fastae.data.files.jpeg import inspect
from fastae.data.files.recovery import ImageFiles, recovered
from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.sampler import BatchParams, Sampler
from fastae.experiment.augment import AugmentParams
from fastae.utils.sample import evenly_spaced

GROUP_BYTES = 1 << 29
"""The maximum bytes of the images that DALI decodes at once, unless one training batch has more.

DALI holds two or three groups of this size.
"""

SIZED = 256
"""The number of files whose headers are read to find the size of the images."""


class DaliSource(BatchSource):
    """Streams augmented batches of JPEG files through DALI.

    On a GPU, DALI decodes the batches of several iterations as one group. A group starts at a multiple of its
    length. So wherever a run starts, an image has the same index in its group, and the same one of the GPU's
    two decoders decodes it.
    """

    kind = "dali"

    def __init__(self, files: ImageFiles, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.files = files

    @property
    def compiles(self) -> bool:
        return super().compiles and self.decoder.output != OutputFormat()

    def example(self) -> tuple[Tensor, ...]:
        (images,) = super().example()
        return (images.float(),) if self.decoder.on_gpu else (images,)

    @cached_property
    def group_length(self) -> int:
        """The number of iterations whose images are decoded at once: on a GPU as many as fit, else 1.

        It follows from a sample of the files that the run began with, so that a resumed run has the same
        groups.
        """
        if not self.decoder.on_gpu:
            return 1
        sample = map(inspect, evenly_spaced(self.files.own, SIZED))
        largest = max(3 * image.width * image.height for image in sample)
        images = min(self.decoder.tuning.decode_batch, GROUP_BYTES // max(1, largest))
        return max(1, images // self.sampler.part_size)

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        batches = recovered(
            self.files,
            self.decoder.faults,
            restart=lambda position, patience: self._decoded(start + position, patience),
            indices_at=lambda position: self._group(start + position).indices.tolist(),
        )
        if self.decoder.on_gpu:
            return zip(batches)
        changes = (params.augment for params in self.params(start))
        return zip(self.decoder.cpu_ops.augmented(zip(batches, changes, strict=False)))

    def make_batch(self, *inputs: Tensor) -> Tensor:
        (images,) = inputs
        return self.decoder.pixel_ops.formatted(images) if self.decoder.on_gpu else images

    def _group(self, iteration: int) -> BatchParams:
        """Returns the batches of the group that contains this iteration, concatenated."""
        first = iteration - iteration % self.group_length
        batches = map(self.sampler.at, range(first, first + self.group_length))
        indices, params = zip(*batches, strict=True)
        return BatchParams(np.concatenate(indices), AugmentParams.joined(params))

    def _decoded(self, first: int, patience: float) -> Iterator[Any]:
        """Yields the batches of iterations first, first + 1, ... from a new pipeline: on a CPU crops only."""
        from fastae.data.loaders.pipeline import DaliPipeline, read_augmented, read_crops

        decoder, paths, length = self.decoder, self.files.paths, self.group_length
        groups = map(self._group, itertools.count(first, length))
        most = self.sampler.part_size * length
        dali = DaliPipeline(
            decoder.crop_resize, decoder.device, most, tuning=decoder.tuning, patience=patience
        )
        if decoder.on_gpu:
            return self._split(read_augmented(paths, groups, dali), first)
        return read_crops(([paths[index] for index in params.indices] for params in groups), dali)

    def _split(self, groups: Iterator[Tensor], first: int) -> Iterator[Tensor]:
        """Yields the batches of iterations first, first + 1, ... of groups, from that of `first` on."""
        before = first % self.group_length
        lengths = map(self.sampler.length, itertools.count(first - before))
        batches = (
            batch
            for images in groups
            for batch in images.split(list(itertools.islice(lengths, self.group_length)))
        )
        return itertools.islice(batches, before, None)
