"""The CPU's kernel, the GPU's functions and the reference agree, in every output format."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fastae.data import CropResize
from fastae.data.loaders.cpu_ops import CpuOps
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.pixel_ops import PixelOps, channel_means, pack_params
from fastae.data.loaders.sampler import BatchParams
from fastae.errors import SettingError
from fastae.experiment.augment import AugmentParams

from . import reference
from .batches import differ, same

SIDES = [(178, 178), (1, 1), (7, 300), (218, 178), (31, 32)]
FORMATS = [
    OutputFormat(),
    OutputFormat(torch.uint8),
    OutputFormat(torch.float32, 0.5, 0.5),
    OutputFormat(torch.bfloat16, (0.5, 0.4, 0.3), (0.2, 0.3, 1e-5)),
    OutputFormat(torch.float16, (0.5, 0.4, 0.3), (0.2, 3000, 1e-5)),
]


def crops_of(sides, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*side, 3), np.uint8) for side in sides]


def changes(number, seed=0):
    generator = np.random.default_rng(seed)
    floats = [generator.uniform(*ends, number) for ends in ((-0.5, 0.5), (0, 2), (0, 2))]
    return AugmentParams(generator.random(number) < 0.5, *np.float32(floats))


def augmented(crops, params, size, output=FORMATS[0], threads=2):
    return next(CpuOps(CropResize(size=size), output, threads).augmented([(crops, params)]))


@settings(max_examples=30, deadline=None)
@given(
    side=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    seed=st.integers(0, 1000),
)
def test_the_kernel_equals_the_reference_at_any_size(side, size, seed):
    crops, params = crops_of([side] * 2, seed), changes(2, seed)
    images = augmented(crops, params, size).permute(0, 2, 3, 1).numpy()
    for image, crop, *changed in zip(images, crops, *params, strict=True):
        resized = reference.resize(crop, size)
        assert np.abs(image - reference.augment(resized, changed[0], *map(float, changed[1:]))).max() <= 1e-5


@pytest.mark.parametrize("output", FORMATS, ids=str)
def test_both_devices_make_the_same_batch_in_each_format(output):
    """The functions of a GPU run here on the CPU, with the pixels that a store would have."""
    crops, params, size = crops_of(SIDES), changes(len(SIDES)), (24, 40)
    exact = augmented(crops, params, size)
    ours = augmented(crops, params, size, output)
    gpu = PixelOps(output, compiled=False)
    pixels = next(CpuOps(CropResize(size=size), output, 1).resized([crops]))
    packed = pack_params(BatchParams(np.arange(len(crops)), params))
    theirs = gpu.augment(pixels, channel_means(pixels), packed)
    for batch in (ours, theirs, gpu.formatted(exact)):
        assert batch.dtype == output.dtype and batch.shape == (len(SIDES), 3, *size)
        assert batch.is_contiguous(memory_format=torch.channels_last)
    mean, scale = (torch.from_numpy(values).view(3, 1, 1) for values in output.norm)
    if output.dtype == torch.uint8:
        assert torch.equal(ours, (exact * 255).round().byte()) and torch.equal(ours, gpu.formatted(exact))
        assert (ours.int() - theirs.int()).abs().max() <= 1
    else:
        assert torch.equal(ours, ((exact - mean) * scale).to(output.dtype))
        assert torch.equal(ours, gpu.formatted(exact))
        unscaled = theirs.double() / scale - ours.double() / scale
        assert unscaled[theirs.isfinite() & ours.isfinite()].abs().max() <= 1e-6 + torch.finfo(ours.dtype).eps


def test_float16_is_rounded_like_pytorch_at_every_magnitude():
    """Normal and subnormal numbers, zeros and infinity: pixels x are the image (x - mean) / std."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16).repeat(1, 1, 3, 1)
    plain = AugmentParams(np.array([False]), *np.float32([[0], [1], [1]]))
    for exponent in range(-6, 7):
        for mean in (0.0, 0.5):
            output = OutputFormat(torch.float16, mean, 10.0**exponent)
            ops = [CpuOps(CropResize(size=16), form, 1) for form in (output, FORMATS[0])]
            params = [BatchParams(np.array([0]), plain)]
            ours, exact = (next(each.gathered(pixels, torch.zeros(1, 3), params)) for each in ops)
            expected = ((exact - output.norm[0, 0]) * output.norm[1, 0]).half()
            assert torch.equal(ours.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("antialias", [False, True])
def test_an_image_depends_neither_on_threads_nor_on_its_batch(antialias):
    crops, params = crops_of(SIDES * 4), changes(4 * len(SIDES))
    for threads in (1, 3, 50):
        ops = CpuOps(CropResize(size=32, antialias=antialias), FORMATS[0], threads)
        batch, *_ = batches = list(ops.augmented([(crops, params)] * 5))
        assert same(batches, [batch] * 5)
        alone = ops.augmented(
            ([crop], AugmentParams(*map(np.atleast_1d, each)))
            for crop, *each in zip(crops, *params, strict=True)
        )
        assert torch.equal(torch.cat(list(alone)), batch)
    plain = AugmentParams(np.zeros(1, bool), *np.float32([[0], [1], [1]]))
    expected = functional.interpolate(
        torch.from_numpy(crops[0])[None].permute(0, 3, 1, 2).double(),
        (32, 32),
        mode="bilinear",
        antialias=antialias,
    )
    assert differ([next(ops.augmented([(crops[:1], plain)]))], [expected / 255]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dtype", {"dtype": torch.float64}),
        ("dtype", {"dtype": "uint8"}),
        ("dtype", {"dtype": torch.uint8, "std": 2}),
        ("mean", {"mean": (1, 2)}),
        ("mean", {"mean": "half"}),
        ("std", {"std": 0}),
        ("std", {"std": float("nan")}),
    ],
)
def test_a_wrong_format_is_refused(name, options):
    with pytest.raises(SettingError, match=name):
        OutputFormat(**options)
