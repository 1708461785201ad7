"""The `dali` loader: its pixels against the reference, its batches against its definition."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.augment import Augmentation
from fastae.data import CropResize, load_images, loader, open_loader
from fastae.data.sampler import Sampler
from fastae.errors import FastaeError

from . import reference

STRONG = Augmentation(brightness=0.5, contrast=0.9, saturation=1.0)


def open_faces(paths, **options):
    defaults = {"kind": "dali", "batch_size": 8, "device": "cpu", "seed": 3, "threads": 2}
    defaults["compiled"] = False
    return open_loader(paths, **(defaults | options))


@pytest.mark.parametrize("crop", [None, 100])
@pytest.mark.parametrize("ranges", [Augmentation(), STRONG], ids=["default", "strong"])
def test_batches_are_the_references(face_paths, ranges, crop):
    batches = open_faces(face_paths, augmentation=ranges, crop_resize=CropResize(crop)).batches()
    all_params = Sampler(len(face_paths), 8, 3, ranges).iterate()
    for images, params in itertools.islice(zip(batches, all_params, strict=False), 4):
        expected = reference.batch(face_paths, params, crop=crop)
        assert np.abs(images.numpy() - expected).max() <= 1e-5


def test_batches_are_the_references_on_celeba(celeba):
    paths = [str(path) for path in sorted(celeba.glob("*.jpg"))[:64]]
    images = next(open_faces(paths, batch_size=64).batches())
    params = Sampler(64, 64, 3, Augmentation()).at(0)
    assert np.abs(images.numpy() - reference.batch(paths, params)).max() <= 1e-5


def test_batches_are_channels_last_float32_in_the_unit_interval(face_paths):
    images = next(open_faces(face_paths, augmentation=STRONG).batches())
    assert images.shape == (8, 3, 128, 128)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.min() == 0 and images.max() == 1


def test_a_batch_stays_valid_while_it_is_held(face_paths):
    batches = open_faces(face_paths).batches()
    held = next(batches)
    copy = held.clone()
    for _ in itertools.islice(batches, 10):
        pass
    assert torch.equal(held, copy)


@pytest.mark.parametrize("start", [1, 4, 5, 23])
def test_a_fresh_loader_started_at_i_gives_what_a_running_one_gives_there(face_paths, start):
    running = next(itertools.islice(open_faces(face_paths).batches(), start, None))
    fresh = next(open_faces(face_paths).batches(start))
    assert torch.equal(running, fresh)


def test_the_number_of_threads_changes_nothing(face_paths):
    one, three = (next(open_faces(face_paths, threads=n).batches(7)) for n in (1, 3))
    assert torch.equal(one, three)


def test_images_of_any_size_nested_or_flat(tmp_path, face_paths):
    sizes = [(178, 218), (300, 200), (64, 64), (500, 301)]
    image = Image.open(face_paths[0])
    for number, size in enumerate(sizes):
        folder = tmp_path / "a" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        image.resize(size).save(folder / f"{number}.JPEG")
    files = sorted(str(path) for path in tmp_path.rglob("*.JPEG"))
    images = load_images(files, CropResize(), "cpu")
    for path, loaded in zip(files, images, strict=True):
        expected = reference.resize(reference.cut_out(reference.decode(path)), 128) / 255
        assert np.abs(loaded.numpy().transpose(1, 2, 0) - expected).max() <= 1e-5


def test_antialias_is_off_unless_asked_for(face_paths):
    crop_resize = CropResize(size=32)
    plain = load_images(face_paths[:1], crop_resize, "cpu")
    smooth = load_images(face_paths[:1], CropResize(size=32, antialias=True), "cpu")
    expected = reference.resize(reference.cut_out(reference.decode(face_paths[0])), 32) / 255
    assert np.abs(plain[0].numpy().transpose(1, 2, 0) - expected).max() <= 1e-5
    assert (smooth - plain).abs().max() > 0.01


def test_load_images_keeps_their_order_and_the_short_last_batch(face_paths):
    several = load_images((face_paths * 2)[:70], CropResize(size=16), "cpu")
    single = load_images(face_paths[29:30], CropResize(size=16), "cpu")
    assert several.shape == (70, 3, 16, 16)
    assert torch.equal(several[69:], single)


def test_a_folder_trains_on_its_training_part_alone(face_folder):
    opened = open_loader(face_folder, kind="dali", batch_size=8, device="cpu", seed=0)
    assert [Path(path).name for path in opened.files.paths] == [f"{n:06d}.jpg" for n in range(1, 39)]


def test_file_names_of_any_bytes(tmp_path, face_paths):
    names = [
        b"new\nline.jpg",
        b"caf\xe9.jpg",
        "\N{GRINNING FACE} [b].jpg".encode(),
        b"x" * 251 + b".jpg",
    ]
    for name in names:
        (tmp_path / Path(name.decode(errors="surrogateescape"))).write_bytes(Path(face_paths[0]).read_bytes())
    images = next(open_loader(tmp_path, kind="dali", batch_size=3, device="cpu", seed=0).batches())
    assert images.shape[0] == 3


def test_refuses_what_cannot_work(face_paths):
    with pytest.raises(FastaeError, match="--batch-size 41 is more than the 40 training images"):
        open_faces(face_paths, batch_size=41)
    with pytest.raises(FastaeError, match="'tape' is not one of: auto, dali, resident"):
        open_faces(face_paths, kind="tape")


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ([], "NVIDIA DALI is not installed: pip install nvidia-dali-cuda130"),
        (list(loader.DALI_BUILDS), "two builds of DALI are installed"),
    ],
)
def test_no_dali_or_two(monkeypatch, installed, message):
    monkeypatch.setattr(loader, "version", lambda name: "2.4.0" if name in installed else None)
    with pytest.raises(FastaeError, match=message):
        loader.require_dali()


def test_opening_a_loader_starts_no_gpu_and_imports_no_tensorflow():
    """The data path stands alone: it knows nothing of training."""
    code = (
        "import sys, fastae.data; "
        "print([m for m in ('tensorboard', 'fastae.training.runner', 'fastae.model') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
