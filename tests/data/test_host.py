"""The `host` loader: the batches of `resident`, through buffers that are used again and again.

CUDA's part is a stand-in that does each piece of work as late as the events allow, so that a buffer which is
overwritten too early shows.
"""

import itertools
import threading
from dataclasses import replace

import pytest
import torch

from fastae.augment import Augmentation
from fastae.data import CropResize, Tuning
from fastae.data.loaders import host
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.host import Slot
from fastae.data.loaders.loader import HostLoader, ResidentLoader
from fastae.data.loaders.pixel_ops import ParamTensors, channel_means
from fastae.data.loaders.resident import Store
from fastae.data.loaders.sampler import Sampler


class LateUploads:
    """A device that works only when the host waits for it. lags: `acquire` is no such wait, as with CUDA."""

    def __init__(self, lags=False):
        self.lags = lags
        self.queue = []
        self.working = threading.Lock()  # two threads may wait for one copy
        self.held = set()
        self.closed = False
        self.bound = None
        self.gathered = threading.Semaphore(0)

    def bind_thread(self):
        self.bound = threading.current_thread()

    def slot(self, like):
        host, device = (tuple(torch.full_like(value, 7) for value in like) for _ in range(2))
        return Slot(host, device, uploaded=threading.Event(), used=None)

    def await_uploaded(self, slot):
        with self.working:
            while self.queue and not slot.uploaded.is_set():
                self.queue.pop(0)()

    def upload(self, slot):
        assert self.bound is threading.current_thread()
        assert id(slot) not in self.held
        slot.uploaded.clear()

        def copy():
            for source, target in zip(slot.host, slot.device, strict=True):
                target.copy_(source)
            slot.uploaded.set()

        self.queue.append(copy)
        self.gathered.release()

    def acquire(self, slot):
        self.held.add(id(slot))
        if not self.lags:
            self.await_uploaded(slot)

    def release(self, slot):
        self.held.remove(id(slot))

    def close(self):
        self.closed = True
        with self.working:
            while self.queue:
                self.queue.pop(0)()


@pytest.fixture
def store():
    pixels = torch.randint(
        256, (50, 16, 3, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Store(pixels, channel_means(pixels), {})


@pytest.fixture
def uploads():
    return LateUploads()


@pytest.fixture
def loaders(store, uploads):
    parts = (
        Sampler(50, 6, 0, Augmentation(0.5, 0.9, 1.0)),
        open_decoder(CropResize(size=16), torch.device("cpu"), Tuning(compiled=False)),
    )
    return HostLoader(store, *parts, uploads=lambda device: uploads), ResidentLoader(store, *parts)


@pytest.mark.parametrize("start", [0, 11])
def test_gives_residents_batches_bit_for_bit(loaders, start):
    ours, theirs = (loader.batches(start) for loader in loaders)
    for one, other in itertools.islice(zip(ours, theirs, strict=False), 20):
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, other)


def test_the_last_batch_in_order_is_shorter(loaders):
    for loader in loaders:
        loader.sampler = replace(loader.sampler, shuffle=False)
    ours, theirs = (list(itertools.islice(loader.batches(7), 20)) for loader in loaders)
    assert [len(batch) for batch in ours] == [6, 2, *[6] * 8, 2, *[6] * 8, 2][: len(ours)]
    assert all(map(torch.equal, ours, theirs))


def test_a_consumer_that_lags_finds_its_batch_untouched(loaders, store, uploads):
    """The host: a batch is still held when the thread has filled all other slots."""
    loader, _ = loaders
    stream = loader.inputs()
    for iteration in range(10):
        batch = next(stream)
        for _ in range(host.SLOTS if iteration == 0 else 1):
            assert uploads.gathered.acquire(timeout=600)
        assert same(batch, expected(loader, store, iteration))


def test_a_device_that_lags_is_given_every_batch_whole(loaders, store, uploads):
    """The device: uploads and steps are queued, and done when the host must wait for one."""
    loader, _ = loaders
    uploads.lags = True
    stream, trained_on = loader.inputs(), []
    for _ in range(10):
        batch = next(stream)
        uploads.queue.append(lambda batch=batch: trained_on.append([value.clone() for value in batch]))
    stream.close()
    assert len(trained_on) == 10
    for iteration, batch in enumerate(trained_on):
        assert same(batch, expected(loader, store, iteration))


def expected(loader, store, iteration):
    params = loader.sampler.at(iteration)
    return store.pixels[params.indices], store.means[params.indices], ParamTensors.pack(params)


def same(batch, other):
    return all(map(torch.equal, batch, other))


def test_its_thread_ends_with_the_stream_and_its_error_is_the_loaders(loaders, uploads):
    loader, _ = loaders
    before = threading.active_count()
    stream = loader.inputs()
    next(stream)
    stream.close()
    assert threading.active_count() == before and uploads.closed

    def fail(slot):
        raise RuntimeError("CUDA error")

    uploads.upload = fail
    with pytest.raises(RuntimeError, match="CUDA error"):
        next(loader.inputs())


def test_an_example_has_the_shapes_of_the_inputs(loaders):
    loader, _ = loaders
    for example, value in zip(loader.example(), next(loader.inputs()), strict=True):
        assert example.shape == value.shape and example.dtype == value.dtype
