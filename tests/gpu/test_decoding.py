"""JPEG files decoded on a GPU: the CPU's pixels, and no crash over any kind of file."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.data import CropResize, Tuning, load_images, open_loader
from fastae.experiment.augment import Augmentation

pytestmark = pytest.mark.usefixtures("dali")


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(),
        Tuning(decode_batch=8),
        Tuning(hw_decoder_load=0.0),
        Tuning(hw_decoder_load=1.0),
    ],
    ids=str,
)
def test_a_gpus_batches_are_the_cpus(face_paths, cuda, results, tuning):
    """GPU decoders round differently: a few gray levels at edges, almost nothing on the mean."""
    strong = Augmentation(0.5, 0.9, 1.0)

    def batches(device):
        loader = open_loader(
            face_paths, kind="dali", batch_size=16, device=device, seed=0, augment=strong, tuning=tuning
        )
        return list(itertools.islice(loader.batches(1), 4))

    ours, theirs = batches(cuda), batches("cpu")
    results()
    for on_gpu, on_cpu in zip(ours, theirs, strict=True):
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


def test_images_are_upright_whatever_their_exif_orientation(cuda, results, tmp_path):
    """Of odd sides and without symmetry. Decoders disagree on whether a region is of the turned image."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels[:141, :199]).save(tmp_path / f"{orientation}.jpg", exif=exif, quality=95)
    paths = sorted(map(str, tmp_path.iterdir()))
    ours, theirs = (load_images(paths, CropResize(size=64), device) for device in (cuda, "cpu"))
    results()
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


def test_held_out_images_do_not_depend_on_their_place_in_the_batch(face_paths, cuda, results):
    whole, part = (load_images(paths, CropResize(), cuda) for paths in (face_paths, face_paths[7:]))
    results()
    assert torch.equal(whole[7:], part)


@pytest.mark.parametrize("kind", ["dali", "host", "resident"])
def test_images_in_order_are_those_of_load_images(face_paths, cuda, results, kind):
    loader = open_loader(face_paths, 16, augment=False, image_size=64, kind=kind, device=cuda, cache=False)
    for _ in range(2):
        batches = [batch.clone() for batch in loader]
        assert [len(batch) for batch in batches] == [16, 16, 8]
    expected = load_images(face_paths, CropResize(size=64), cuda)
    results()
    assert (torch.cat(batches) - expected).abs().max() < 0.51 / 255
