"""What needs a CUDA device: the same graph, step, clock and run as elsewhere in these tests, on the GPU."""

import itertools

import pytest
import torch

from fastae.data import open_loader
from fastae.data.loaders import store
from fastae.device.choose import Precision
from fastae.training.clock import Clock
from fastae.training.step.step import CAPTURED

from .conftest import SHAPE, make_step, small_model

pytestmark = pytest.mark.usefixtures("dali")


BUSY = 50_000_000
"""Clock cycles: 25 to 40 ms, in which a loader gets several batches ahead."""


@pytest.mark.parametrize(("kind", "reference"), [("host", "resident"), ("dali", "dali")])
def test_a_loader_overwrites_no_batch_that_a_busy_stream_still_reads(
    face_paths, cuda, results, tmp_path, kind, reference
):
    """The stream is far behind; a wait would hide the race. The reference begins at the sixth batch."""

    def batches(kind, start, cycles):
        loader = open_loader(
            face_paths, kind=kind, batch_size=8, device=cuda, seed=3, cache=tmp_path, targets=range(40)
        )
        kept = []
        for images, targets in itertools.islice(loader.batches(start), 20 - start):
            torch.cuda._sleep(cycles)
            kept.append((loader.indices(start + len(kept)), targets.clone(), images.clone()))
            if not cycles:
                torch.cuda.synchronize()
        return kept

    ours, theirs = batches(kind, 0, BUSY), batches(reference, 5, 0)
    results()
    for (indices, targets, images), (_, *expected) in zip(ours[5:], theirs, strict=True):
        assert targets.tolist() == indices.tolist() and images.is_cuda
        assert torch.equal(targets, expected[0]) and torch.equal(images, expected[1])


def test_a_store_that_one_gpu_run_built_the_next_opens(face_paths, cuda, tmp_path, monkeypatch):
    for _ in range(2):
        open_loader(face_paths, kind="resident", batch_size=8, device=cuda, seed=3, cache=tmp_path)
        monkeypatch.setattr(store, "_build", None)  # building again would fail


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["minibatch_mse", "pixel_bce"])
def test_amp_follows_float32_even_for_the_pixel_losses(cuda, real_gpu, dtype, loss):
    ours, theirs = (
        make_step(small_model(cuda), precision=Precision(kind, ""), loss=loss, compiled=False)
        for kind in (dtype, None)
    )
    for iteration in range(20):
        generator = torch.Generator(cuda).manual_seed(iteration)
        images = torch.rand(SHAPE, device=cuda, generator=generator)
        rounded, _ = ours(images)
        exact, _ = theirs(images)
        assert rounded.item() == pytest.approx(exact.item(), rel=0.03)


def test_a_compiled_step_waits_for_nothing(cuda):
    step = make_step(small_model(cuda))
    images = torch.rand(SHAPE, device=cuda).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        step(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(5):
                step(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["dali", "host", "resident"])
def test_a_graph_of_the_whole_step_trains_as_the_eager_step_does(cuda, results, face_paths, kind):
    loader = open_loader(
        face_paths, kind=kind, batch_size=8, device=cuda, seed=0, image_size=64, cache=False
    ).source

    def train(recorded):
        step = make_step(small_model(cuda), loader=loader)
        if recorded:
            assert step.capture(loader.example()) == CAPTURED
        return [step(*inputs)[0].item() for inputs in itertools.islice(loader.inputs(), 10)]

    ours, theirs = train(recorded=True), train(recorded=False)
    results()
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_the_clock_times_the_device_not_the_host(cuda, results):
    clock = Clock(cuda, batch_size=1, longest=1)
    matrix = torch.rand(8192, 8192, device=cuda)
    matrix @ matrix
    torch.cuda.synchronize()
    clock.skip()
    clock.fetch()
    clock.data_ready()
    for _ in range(10):
        matrix @ matrix  # returns at once; the device is busy for many milliseconds
    clock.step_done(torch.zeros((), device=cuda))
    clock.close(torch.zeros(3, device=cuda))
    (window,) = clock.read()
    results()
    assert window.step_p50 > 0.005
    assert window.data_wait_share < 0.1
