"""The passes over pixels: what a GPU compiles into one function is what a CPU does step by step."""

import numpy as np
import pytest
import torch

from fastae.augment import Augmentation
from fastae.data.crop_resize import CropResize
from fastae.data.pixel_ops import ParamTensors, PixelOps
from fastae.data.sampler import Sampler


@pytest.fixture
def params():
    return Sampler(20, 6, 0, Augmentation(0.5, 0.9, 1.0)).at(2)


def test_a_plan_travels_in_one_tensor(params):
    words = ParamTensors.pack(params)
    assert words.dtype == torch.int32 and words.shape == (5, 6)
    for name, value in ParamTensors.unpack(words)._asdict().items():
        sent = getattr(params, name)
        assert value.dtype == torch.from_numpy(sent).dtype
        assert np.array_equal(value, sent), name


def test_the_gpus_function_gives_the_cpus_batch(params):
    torch.manual_seed(0)
    store, means = torch.randint(256, (20, 16, 3, 16), dtype=torch.uint8), torch.rand(20, 3)
    ops = PixelOps(CropResize(size=16), compiled=False)
    words = ParamTensors.pack(params)
    on_gpu, on_cpu = ops._gather_on_gpu(store, means, words), ops.gather(store, means, words)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6)
    assert params.flip.any() and not params.flip.all()
