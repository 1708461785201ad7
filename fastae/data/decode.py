"""Image files to pixels, in order: the common ground of evaluation, and of the resident store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastae.data.geometry import Geometry
from fastae.data.mending import DECODER_ERRORS, ImageFiles
from fastae.data.pixels import Passes
from fastae.data.tuning import DEFAULT, Tuning

BATCH = 64


@dataclass(frozen=True)
class Decoder:
    """How images are decoded here. threads: of DALI's on the CPU."""

    geometry: Geometry
    passes: Passes
    device: torch.device
    threads: int
    tuning: Tuning = DEFAULT

    @property
    def name(self) -> str:
        """Which decoder's pixels these are: the CPU's and the GPU's differ by rounding."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    def decode(self, files: ImageFiles) -> Iterator[Tensor]:
        """Every image once, not augmented: batches (n, S, 3, S) float32 in [0, 255] on the device."""

        def batches(first: int) -> Iterator[list[str]]:
            for start in range(first * BATCH, len(files), BATCH):
                yield files.paths[start : start + BATCH]

        def prefetched(position: int) -> range:
            return range(position * BATCH, min((position + 2 + self.tuning.prefetch) * BATCH, len(files)))

        yield from files.mended(lambda first: self._stream(batches(first)), prefetched, self.decodes)

    def decodes(self, paths: Sequence[str]) -> bool:
        """Whether the decoder takes all of these files, BATCH at most."""
        try:
            for _ in self._stream(iter([list(paths)])):
                pass
        except DECODER_ERRORS:
            return False
        return True

    def _stream(self, batches: Iterator[list[str]]) -> Iterator[Tensor]:
        from fastae.data.pipeline import Engine, read_images, read_regions

        engine = Engine(self.device, BATCH, self.threads, self.tuning)
        if engine.on_gpu:
            for images in read_images(batches, self.geometry, engine):
                yield images.transpose(1, 2)
        else:
            for regions in read_regions(batches, self.geometry, engine):
                yield self.passes.resize(regions)
