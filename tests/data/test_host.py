"""The `host` loader yields the batches of `resident`, which a thread gathers and uploads ahead.

On the CPU, PyTorch's functions for streams and events do nothing: tests/gpu tests them.
"""

import threading
from dataclasses import replace

import pytest
import torch

from fastae.data import CropResize, Tuning
from fastae.data.loaders import host
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.host import HostSource
from fastae.data.loaders.pixel_ops import channel_means
from fastae.data.loaders.resident import ResidentSource
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import Store
from fastae.experiment.augment import Augmentation

from .batches import differ, take


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 16, 3, 16), dtype=torch.uint8, generator=generator)
    store = Store(pixels, channel_means(pixels), {})
    sampler = Sampler(50, 6, 0, Augmentation(0.5, 0.9, 1.0))
    decoder = open_decoder(CropResize(size=16), torch.device("cpu"), Tuning(compiled=False))
    return [kind(store, sampler, decoder) for kind in (HostSource, ResidentSource)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_host_batches_equal_resident_batches(loaders, shuffle):
    """Without shuffling, the last batch of an epoch is shorter."""
    for loader in loaders:
        loader.sampler = replace(loader.sampler, shuffle=shuffle)
    ours, theirs = (take(loader.batches(7), 20) for loader in loaders)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in ours)
    assert differ(ours, theirs) <= 1e-6
    assert [len(batch) for batch in ours][:3] == ([6, 6, 6] if shuffle else [6, 2, 6])


def test_the_thread_ends_with_the_stream_and_the_loader_raises_its_error(loaders, monkeypatch):
    loader, _ = loaders
    before = threading.active_count()
    stream = loader.inputs()
    next(stream)
    stream.close()
    assert threading.active_count() == before

    def fail(*arguments, **options):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(host, "gather", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        next(loader.inputs())
    assert threading.active_count() == before


def test_an_example_has_the_shapes_of_the_inputs(loaders):
    loader, _ = loaders
    for example, value in zip(loader.example(), next(loader.inputs()), strict=True):
        assert example.shape == value.shape and example.dtype == value.dtype
