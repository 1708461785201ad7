"""Batches from a store in host memory, for a GPU whose memory is too small for it: `--loader host`.

A thread gathers each batch in pinned memory, and a separate CUDA stream uploads it while the training step
runs. Flips and color changes are part of the step. A batch of 64 images has 3.1 MB, which take 0.13 ms over
PCIe 4.0.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.pixel_ops import pack_params
from fastae.data.loaders.sampler import BatchParams, Sampler
from fastae.data.loaders.store import Store

AHEAD = 4
"""The number of batches that are gathered and uploaded ahead."""


class HostSource(BatchSource):
    """Gathers batches from decoded images in host memory, and uploads them to a GPU, which augments them."""

    kind = "host"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def example(self) -> tuple[Tensor, ...]:
        return tuple(value.to(self.device) for value in gather(self.store, self.sampler.at(0)))

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return upload_batches(self.store, self.sampler, start, device=self.device)

    def make_batch(self, *inputs: Tensor) -> Tensor:
        return self.decoder.pixel_ops.augment(*inputs)


def upload_batches(
    store: Store, sampler: Sampler, start: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the batches of iterations start, start + 1, ... on the device, not yet augmented.

    A batch is uint8 (N, H, 3, W), the means (N, 3) and the packed parameters, for use on the current stream.
    """
    cuda = torch.get_device_module(device)  # on a CPU, used only by tests, its functions do nothing
    stream = cuda.Stream(device)

    def upload(iteration: int) -> tuple[tuple[Tensor, ...], Any]:
        """Queues the copies of a batch; returns the copies, and the event after which they are complete."""
        pinned = gather(store, sampler.at(iteration), pinned=device.type == "cuda")
        with cuda.stream(stream):
            # PyTorch reuses the pinned memory only after these copies, which it tracks by its own events.
            return tuple(value.to(device, non_blocking=True) for value in pinned), stream.record_event()

    # The current device of a new thread is the first GPU. Leaving a stream there would create a CUDA context,
    # which takes half a GB.
    with ThreadPoolExecutor(1, "gather", cuda.set_device, (device,)) as pool:
        uploads = deque(pool.submit(upload, iteration) for iteration in range(start, start + AHEAD))
        for iteration in itertools.count(start + AHEAD):
            batch, uploaded = uploads.popleft().result()
            uploads.append(pool.submit(upload, iteration))
            consumer = cuda.current_stream(device)
            consumer.wait_event(uploaded)
            for value in batch:
                if value.is_cuda:  # its memory is reused only after this stream's work on it
                    value.record_stream(consumer)
            yield batch


def gather(store: Store, params: BatchParams, pinned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gathers a batch of the store: pixels, means and packed parameters, if `pinned` in pinned memory."""
    indices = torch.from_numpy(params.indices)
    pixels = torch.empty(len(indices), *store.pixels.shape[1:], dtype=torch.uint8, pin_memory=pinned)
    means = torch.empty(len(indices), 3, pin_memory=pinned)
    torch.index_select(store.pixels, 0, indices, out=pixels)
    torch.index_select(store.means, 0, indices, out=means)
    return pixels, means, pack_params(params, pinned)
