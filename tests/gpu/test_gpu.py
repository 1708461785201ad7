"""What needs a CUDA device: the same graph, step, clock and run as elsewhere in these tests, on the GPU."""

import copy
import itertools

import pytest
import torch

from fastae.augment import Augmentation
from fastae.data import CropResize, load_images, open_loader
from fastae.model import AutoEncoder
from fastae.training.step import TrainingStep
from fastae.training.step_timer import StepClock
from fastae.utils.device import Precision, choose_precision

from ..commands import fastae

SHAPE = (8, 3, 64, 64)


def test_the_gpu_graph_gives_the_cpus_batches(face_paths, cuda):
    # GPU decoders round differently: a few grey levels at edges, almost nothing on the mean.
    def first(device):
        loader = open_loader(face_paths, batch_size=16, device=device, seed=0)
        return next(loader.batches(3))

    on_gpu, on_cpu = first(cuda), first("cpu")
    assert on_gpu.device == cuda and on_gpu.dtype == torch.float32
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    difference = (on_gpu.cpu() - on_cpu).abs()
    assert difference.mean() < 1 / 255
    assert difference.quantile(0.99) < 8 / 255 if difference.numel() < 2**24 else True


def test_colour_on_the_gpu_is_the_formula(face_paths, cuda):
    """With the same decoder on both sides the two graphs' colour agrees closely."""
    ranges = Augmentation(0.5, 0.9, 1.0)
    still = Augmentation(0.0, 0.0, 0.0)
    moved, plain = (
        next(open_loader(face_paths, batch_size=16, device=cuda, seed=0, augmentation=a).batches())
        for a in (ranges, still)
    )
    assert (moved - plain).abs().max() > 0.1
    loaded = load_images(face_paths, CropResize(), cuda)
    assert loaded.min() >= 0 and loaded.max() <= 1


def test_a_fresh_gpu_loader_continues_a_running_one(face_paths, cuda):
    def open_faces():
        return open_loader(face_paths, batch_size=8, device=cuda, seed=3)

    running = next(itertools.islice(open_faces().batches(), 5, None)).clone()
    assert torch.equal(running, next(open_faces().batches(5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["minibatch_mse", "pixel_bce"])
def test_amp_follows_float32_even_for_the_pixel_losses(cuda, dtype, loss):
    torch.manual_seed(0)
    plain = AutoEncoder(64, 32).to(cuda, memory_format=torch.channels_last)
    half = copy.deepcopy(plain)

    def step(model, precision):
        return TrainingStep(model, loss=loss, batch_shape=SHAPE, lr=1e-4, precision=precision, compiled=False)

    ours, theirs = step(half, Precision(dtype, "")), step(plain, Precision(None, ""))
    for iteration in range(20):
        generator = torch.Generator(cuda).manual_seed(iteration)
        images = torch.rand(SHAPE, device=cuda, generator=generator)
        rounded, _ = ours(images)
        exact, _ = theirs(images)
        assert rounded.item() == pytest.approx(exact.item(), rel=0.03)


def test_a_compiled_step_waits_for_nothing(cuda):
    torch.manual_seed(0)
    model = AutoEncoder(64, 32).to(cuda, memory_format=torch.channels_last)
    step = TrainingStep(
        model,
        loss="minibatch_bce",
        batch_shape=SHAPE,
        lr=1e-4,
        precision=choose_precision(cuda, amp=True),
        compiled=True,
    )
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


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_graph_of_the_whole_step_trains_as_the_eager_step_does(cuda, face_paths, kind):
    loader = open_loader(
        face_paths, kind=kind, batch_size=8, device=cuda, seed=0, crop_resize=CropResize(size=64), cache=None
    )

    def train(recorded):
        torch.manual_seed(0)
        model = AutoEncoder(64, 32).to(cuda).to(memory_format=torch.channels_last)
        step = TrainingStep(
            model, loss="minibatch_bce", batch_shape=SHAPE, lr=1e-4,
            precision=choose_precision(cuda, amp=True), compiled=True, images_of=loader.images,
        )  # fmt: skip
        if recorded:
            assert step.record(loader.example()) == "one CUDA graph a step"
        return [step(*inputs)[0].item() for inputs in itertools.islice(loader.inputs(), 10)]

    assert train(recorded=True) == pytest.approx(train(recorded=False), rel=2e-3)


def test_recording_leaves_the_weights_as_they_were(cuda):
    torch.manual_seed(0)
    model = AutoEncoder(64, 32).to(cuda).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    step = TrainingStep(
        model, loss="minibatch_bce", batch_shape=SHAPE, lr=1e-4,
        precision=choose_precision(cuda, amp=True), compiled=True,
    )  # fmt: skip
    step.record([torch.rand(SHAPE, device=cuda).contiguous(memory_format=torch.channels_last)])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not value.any() for state in step.optimizer.state.values() for value in state.values())


def test_the_clock_times_the_device_not_the_host(cuda):
    clock = StepClock(cuda, batch_size=1)
    matrix = torch.rand(8192, 8192, device=cuda)
    matrix @ matrix
    torch.cuda.synchronize()
    clock.begin()
    clock.data_ready()
    for _ in range(10):
        matrix @ matrix  # returns at once; the device is busy for many milliseconds
    clock.step_done()
    window = clock.close()
    assert window.step_p50 > 0.005
    assert window.wait_share < 0.1


def test_a_run_on_the_gpu(face_folder, tmp_path):
    result = fastae(
        "train", "--amp", "--device", "cuda", "--data", face_folder, "--out", tmp_path / "run",
        "--iterations", 30, "--batch-size", 16, "--log-every", 10,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
