"""The passes over pixels: what a GPU compiles into one function is what a CPU does step by step."""

import numpy as np
import pytest
import torch

from fastae.augment import Augmentation
from fastae.data.crop_resize import Geometry
from fastae.data.pixel_ops import Parameters, Passes
from fastae.data.sampler import Order


@pytest.fixture
def plan():
    return Order(20, 6, 0, Augmentation(0.5, 0.9, 1.0)).plan(2)


def test_a_plan_travels_in_one_tensor(plan):
    words = Parameters.pack(plan)
    assert words.dtype == torch.int32 and words.shape == (5, 6)
    for name, value in Parameters.unpack(words)._asdict().items():
        sent = getattr(plan, name)
        assert value.dtype == torch.from_numpy(sent).dtype
        assert np.array_equal(value, sent), name


def test_the_gpus_function_gives_the_cpus_batch(plan):
    torch.manual_seed(0)
    store, means = torch.randint(256, (20, 16, 3, 16), dtype=torch.uint8), torch.rand(20, 3)
    ops = Passes(Geometry(size=16), compiled=False)
    words = Parameters.pack(plan)
    on_gpu, on_cpu = ops._gather_on_gpu(store, means, words), ops.gather(store, means, words)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6)
    assert plan.flip.any() and not plan.flip.all()
