"""Batches from a store of decoded images on the training device: `--loader resident`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.pixel_ops import pack_params
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import Store


class ResidentSource(BatchSource):
    """Gathers batches from decoded images on the device, and augments them."""

    kind = "resident"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def example(self) -> tuple[Tensor, ...]:
        return next(self.inputs()) if self.decoder.on_gpu else super().example()

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        params = self.params(start)
        if self.decoder.on_gpu:
            return ((pack_params(each, pinned=True),) for each in params)
        return zip(self.decoder.cpu_ops.gathered(self.store.pixels, self.store.means, params))

    def make_batch(self, *inputs: Tensor) -> Tensor:
        (packed,) = inputs
        if self.decoder.on_gpu:
            return self.decoder.pixel_ops.gather(self.store.pixels, self.store.means, packed)
        return packed
