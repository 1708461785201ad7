"""What needs a CUDA device: the same graph, step, clock and run as elsewhere in these tests, on the GPU."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.augment import Augmentation
from fastae.data import CropResize, Tuning, load_images, open_loader, resident
from fastae.model import AutoEncoder
from fastae.training.step import TrainingStep, objective_of
from fastae.training.step_timer import StepTimer
from fastae.utils.device import Precision, choose_precision

from ..commands import fastae

pytestmark = pytest.mark.usefixtures("real_gpu")

SHAPE = (8, 3, 64, 64)


def make_step(model, precision, loss="minibatch_bce", compiled=True, **options):
    objective = objective_of(model, loss, precision, compiled)
    return TrainingStep(
        model, loss=loss, batch_shape=SHAPE, lr=1e-4, precision=precision, objective=objective, **options
    )


def small_model(cuda):
    torch.manual_seed(0)
    return AutoEncoder(64, 32).to(cuda).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(),
        Tuning(colors_in_step=True),
        Tuning(decode_batch=8),
        Tuning(hw_decoder_load=0.0),
        Tuning(hw_decoder_load=1.0),
        Tuning(decode_on_cpu=True),
    ],
    ids=str,
)
def test_a_gpus_batches_are_the_cpus(face_paths, cuda, tuning):
    """GPU decoders round differently: a few gray levels at edges, almost nothing on the mean."""
    strong = Augmentation(0.5, 0.9, 1.0)

    def batches(device):
        loader = open_loader(
            face_paths, kind="dali", batch_size=16, device=device, seed=0, augmentation=strong, tuning=tuning
        )
        return list(itertools.islice(loader.batches(1), 4))

    for on_gpu, on_cpu in zip(batches(cuda), batches("cpu"), strict=True):
        assert on_gpu.device == cuda and on_gpu.is_contiguous(memory_format=torch.channels_last)
        difference = (on_gpu.cpu() - on_cpu).abs()
        assert difference.mean() < 1 / 255 and difference.quantile(0.99) < 8 / 255


@pytest.mark.parametrize("engine", [0.0, 0.65, 1.0])
def test_a_batch_of_gray_images_and_every_sampling_of_chroma(gpu_process, tmp_path, engine):
    """In a child process: nvImageCodec has crashed over these. engine: the JPEG engine's share."""
    smooth = np.random.default_rng(0).integers(0, 256, (64, 14, 11, 3), np.uint8)
    for number, pixels in enumerate(smooth):
        image = Image.fromarray(pixels).resize((178, 218))
        sampling = ("4:2:0", "4:2:2", "4:4:4", None)[number % 4]
        path = tmp_path / f"{number:02d}.jpg"
        (image if sampling else image.convert("L")).save(path, quality=95, subsampling=sampling or 0)
    gpu_process(f"""
        import glob, torch
        from fastae.data import Tuning, open_loader
        paths = sorted(glob.glob({str(tmp_path / "*.jpg")!r}))
        def batch(device, tuning):
            loader = open_loader(paths, kind="dali", batch_size=64, device=device, seed=0, tuning=tuning)
            return next(loader.batches()).cpu()
        difference = (batch("cuda", Tuning(hw_decoder_load={engine})) - batch("cpu", Tuning())).abs()
        assert difference.mean((1, 2, 3)).max() < 2 / 255, difference.mean((1, 2, 3))
    """)


def test_images_are_upright_whatever_their_exif_orientation(cuda, tmp_path):
    """Of odd sides and without symmetry. Decoders disagree on whether a region is of the turned image."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels[:141, :199]).save(tmp_path / f"{orientation}.jpg", exif=exif, quality=95)
    paths = sorted(map(str, tmp_path.iterdir()))
    ours, theirs = (load_images(paths, CropResize(size=64), device) for device in (cuda, "cpu"))
    difference = (ours.cpu() - theirs).abs().mean((1, 2, 3))
    assert (difference < 2 / 255).all(), difference


@pytest.mark.parametrize("kind", ["dali", "host", "resident"])
def test_a_loader_on_the_second_gpu_opens_nothing_on_the_first(gpu_process, face_paths, tmp_path, kind):
    """In a child process, in which nothing has used the first one; from Python, where that is the current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    gpu_process(f"""
        import ctypes, itertools
        from fastae.data import CropResize, load_images, open_loader
        load_images({face_paths!r}, CropResize(), "cuda:1")
        loader = open_loader(
            {face_paths!r}, kind={kind!r}, batch_size=8, device="cuda:1", seed=0, cache={str(tmp_path)!r}
        )
        for batch in itertools.islice(loader.batches(), 20):
            assert batch.device.index == 1
        flags, active = ctypes.c_uint(), ctypes.c_int()
        driver = ctypes.CDLL("libcuda.so.1")
        assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
        assert not active.value, "a context was opened on the first GPU"
    """)


def test_the_host_loader_gives_residents_batches(face_paths, cuda, tmp_path):
    host, resident = (
        open_loader(face_paths, kind=kind, batch_size=8, device=cuda, seed=3, cache=tmp_path)
        for kind in ("host", "resident")
    )
    for one, other in itertools.islice(zip(host.batches(), resident.batches(), strict=False), 20):
        assert torch.equal(one, other)


def test_a_store_that_one_gpu_run_built_the_next_opens(face_paths, cuda, tmp_path, monkeypatch):
    for _ in range(2):
        open_loader(face_paths, kind="resident", batch_size=8, device=cuda, seed=3, cache=tmp_path)
        monkeypatch.setattr(resident, "_build", None)  # building again would fail


def test_held_out_images_do_not_depend_on_their_place_in_the_batch(face_paths, cuda):
    whole = load_images(face_paths, CropResize(), cuda)
    assert torch.equal(whole[7:], load_images(face_paths[7:], CropResize(), cuda))


def test_a_fresh_gpu_loader_continues_a_running_one(face_paths, cuda):
    def open_faces():
        return open_loader(face_paths, kind="dali", batch_size=8, device=cuda, seed=3)

    running = next(itertools.islice(open_faces().batches(), 5, None)).clone()
    assert torch.equal(running, next(open_faces().batches(5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["minibatch_mse", "pixel_bce"])
def test_amp_follows_float32_even_for_the_pixel_losses(cuda, dtype, loss):
    ours, theirs = (
        make_step(small_model(cuda), Precision(kind, ""), loss, compiled=False) for kind in (dtype, None)
    )
    for iteration in range(20):
        generator = torch.Generator(cuda).manual_seed(iteration)
        images = torch.rand(SHAPE, device=cuda, generator=generator)
        rounded, _ = ours(images)
        exact, _ = theirs(images)
        assert rounded.item() == pytest.approx(exact.item(), rel=0.03)


def test_a_compiled_step_waits_for_nothing(cuda):
    step = make_step(small_model(cuda), choose_precision(cuda, amp=True))
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
def test_a_graph_of_the_whole_step_trains_as_the_eager_step_does(cuda, face_paths, kind):
    loader = open_loader(
        face_paths, kind=kind, batch_size=8, device=cuda, seed=0, crop_resize=CropResize(size=64), cache=False
    )

    def train(recorded):
        step = make_step(small_model(cuda), choose_precision(cuda, amp=True), images_of=loader.images)
        if recorded:
            assert step.record(loader.example()) == "one CUDA graph a step"
        return [step(*inputs)[0].item() for inputs in itertools.islice(loader.inputs(), 10)]

    assert train(recorded=True) == pytest.approx(train(recorded=False), rel=2e-3)


def test_the_clock_times_the_device_not_the_host(cuda):
    clock = StepTimer(cuda, batch_size=1)
    matrix = torch.rand(8192, 8192, device=cuda)
    matrix @ matrix
    torch.cuda.synchronize()
    clock.begin()
    clock.fetch()
    clock.data_ready()
    for _ in range(10):
        matrix @ matrix  # returns at once; the device is busy for many milliseconds
    clock.step_done()
    window = clock.split().measure()
    assert window.step_p50 > 0.005
    assert window.data_wait < 0.1


def test_a_run_on_the_gpu(face_folder, tmp_path):
    result = fastae(
        "train", "--amp", "--device", "cuda", "--data", face_folder, "--out", tmp_path / "run",
        "--iterations", 30, "--batch-size", 16, "--log-every", 10,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
