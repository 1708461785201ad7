"""Batches from a store in host memory, for a GPU whose memory is too small for it: `--loader host`.

A thread gathers each batch into one of a few pinned buffers, and a separate CUDA stream uploads it while the
training step runs. Flips and color changes are part of the step. A batch of 64 images has 3.1 MB, which take
0.13 ms over PCIe 4.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from fastae.data.loaders.pixel_ops import ParamTensors
from fastae.data.loaders.resident import Store
from fastae.data.loaders.sampler import BatchParams, Sampler

SLOTS = 6
"""The number of batches in flight: one being gathered, one being uploaded, the rest queued for training."""


@dataclass(frozen=True)
class Slot:
    """The buffers of one batch."""

    host: tuple[Tensor, ...]
    """Pinned buffers on the host."""

    device: tuple[Tensor, ...]
    """Buffers of the same shapes on the device."""

    uploaded: Any
    """CUDA event after which the host's buffers may be overwritten."""

    used: Any
    """CUDA event after which the device's buffers may be overwritten."""


class CudaUploads:
    """All calls of CUDA, in one class that a test replaces."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def bind_thread(self) -> None:
        """Makes the GPU the calling thread's current device.

        A thread starts on the first GPU, where leaving a stream would create a context of half a GB.
        """
        torch.cuda.set_device(self._device)

    def slot(self, like: Sequence[Tensor]) -> Slot:
        """Allocates buffers for tensors of these shapes."""
        slot = Slot(
            tuple(torch.empty_like(value, device="cpu", pin_memory=True) for value in like),
            tuple(torch.empty_like(value, device=self._device) for value in like),
            torch.cuda.Event(),
            torch.cuda.Event(),
        )
        self.release(slot)  # queued work may still use this memory, which belonged to another tensor before
        return slot

    def await_uploaded(self, slot: Slot) -> None:
        """Blocks the calling thread until the slot's last upload has finished."""
        slot.uploaded.synchronize()

    def upload(self, slot: Slot) -> None:
        """Queues the copy to the device, to run after the work that used the slot before."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.used)
            for host, device in zip(slot.host, slot.device, strict=True):
                device.copy_(host, non_blocking=True)
            slot.uploaded.record(self._stream)

    def acquire(self, slot: Slot) -> None:
        """Makes later work on the current stream wait for the upload. Does not block."""
        torch.cuda.current_stream(self._device).wait_event(slot.uploaded)

    def release(self, slot: Slot) -> None:
        """Marks the slot as unused after the work that is queued on the current stream. Does not block."""
        slot.used.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Blocks until all uploads have finished."""
        self._stream.synchronize()


def upload_batches(
    store: Store, sampler: Sampler, start: int, uploads: CudaUploads
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the batches of iterations start, start + 1, ... on the device, not yet augmented.

    A batch is uint8 (N, S, 3, S), the means (N, 3) and the packed parameters. It is valid on the current
    stream until the next one is requested.
    """
    free: SimpleQueue[Slot | None] = SimpleQueue()
    ready: SimpleQueue[Slot | Exception] = SimpleQueue()
    example = tensors(store, sampler.at(0))
    for _ in range(SLOTS):
        free.put(uploads.slot(example))

    def work() -> None:
        try:
            uploads.bind_thread()
            for params in sampler.iterate(start):
                slot = free.get()
                if slot is None:
                    return
                uploads.await_uploaded(slot)
                gather(store, params, slot.host)
                uploads.upload(slot)
                ready.put(slot)
        except Exception as error:
            ready.put(error)

    thread = Thread(target=work, name="gather", daemon=True)
    thread.start()
    try:
        for iteration in itertools.count(start):
            slot = ready.get()
            if isinstance(slot, Exception):
                raise slot
            uploads.acquire(slot)
            yield _first(sampler.size(iteration), slot.device)
            uploads.release(slot)
            free.put(slot)
    finally:
        free.put(None)
        thread.join()
        uploads.close()


def tensors(store: Store, params: BatchParams) -> tuple[Tensor, Tensor, Tensor]:
    """Gathers a batch of the store: pixels, means and packed parameters."""
    indices = torch.from_numpy(params.indices)
    return store.pixels[indices], store.means[indices], ParamTensors.pack(params)


def gather(store: Store, params: BatchParams, into: Sequence[Tensor]) -> None:
    """Writes the batch of `tensors` into buffers of the same shapes, or for more images."""
    pixels, means, words = _first(len(params.indices), into)
    indices = torch.from_numpy(params.indices)
    torch.index_select(store.pixels, 0, indices, out=pixels)
    torch.index_select(store.means, 0, indices, out=means)
    words.copy_(ParamTensors.pack(params))


def _first(count: int, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels, means and packed parameters of the first `count` images."""
    pixels, means, words = buffers
    return pixels[:count], means[:count], words[:, :count]
