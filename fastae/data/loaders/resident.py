"""Batches from a store of decoded images on the training device: `--loader resident`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import Store


class ResidentSource(BatchSource):
    """Gathers batches from decoded images on the device, and augments them."""

    kind = "resident"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return zip(self.packed_params(start))

    def make_batch(self, *inputs: Tensor) -> Tensor:
        (packed,) = inputs
        return self.decoder.pixel_ops.gather(self.store.pixels, self.store.means, packed)
