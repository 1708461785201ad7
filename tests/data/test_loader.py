"""Compares the loaders' batches with the reference and with their definition, also for a GPU's graph."""

import json
import multiprocessing
import os
import runpy
import struct

import numpy as np
import pynvml
import pytest
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from PIL import Image

from fastae.data import CropResize, Tuning, load_images, open_loader
from fastae.data.files.faults import Fault
from fastae.data.files.inspect import Inspection
from fastae.data.files.recovery import DecoderError, ImageFiles
from fastae.data.loaders import dali as loaders
from fastae.data.loaders import pipeline
from fastae.data.loaders.dali import DaliSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.pipeline import (
    DaliPipeline,
    build_augmented,
    cut_region,
    read_augmented,
    read_crops,
    read_images,
)
from fastae.data.loaders.pixel_ops import PixelOps
from fastae.data.loaders.sampler import BatchParams, Sampler
from fastae.errors import FastaeError, SettingError
from fastae.experiment.augment import Augmentation, AugmentParams
from fastae.utils import environment

from . import reference
from .batches import differ, opened, same, take

STRONG = Augmentation(brightness=0.5, contrast=0.9, saturation=1.0)
RANGES = pytest.mark.parametrize("ranges", [Augmentation(), STRONG], ids=["default", "strong"])
CPU = torch.device("cpu")


@RANGES
@pytest.mark.parametrize("crop", [None, 100])
def test_batches_equal_the_reference(face_paths, ranges, crop):
    batches = take(opened(face_paths, augment=ranges, crop=crop).batches(), 3)
    for iteration, images in enumerate(batches):
        params = Sampler(len(face_paths), 8, 3, ranges).at(iteration)
        expected = reference.batch(face_paths, params, crop=crop)
        assert np.abs(images.numpy() - expected).max() <= 1e-5
        assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1


def test_batches_equal_the_reference_on_celeba(celeba):
    paths = [str(path) for path in sorted(celeba.glob("*.jpg"))[:64]]
    images = next(opened(paths, batch_size=64).batches())
    params = Sampler(64, 64, 3, Augmentation()).at(0)
    assert np.abs(images.numpy() - reference.batch(paths, params)).max() <= 1e-5


@RANGES
@pytest.mark.parametrize("crop", [None, 100])
def test_the_graph_for_gpus_equals_the_reference(face_paths, ranges, crop):
    """The graph runs on the CPU here, and decodes two batches as one."""
    sampler = Sampler(len(face_paths), 8, 3, ranges)
    indices, changes = zip(sampler.at(0), sampler.at(1), strict=True)
    pair = BatchParams(np.concatenate(indices), AugmentParams.joined(changes))
    expected = reference.batch(face_paths, pair, crop=crop)
    dali = DaliPipeline(CropResize(crop), CPU, 16, Tuning(threads=1))
    (images,) = read_augmented(face_paths, iter([pair]), dali)
    assert np.abs(images.numpy() - expected).max() <= 1e-5


@pytest.mark.parametrize("side", [97, 100, None])
def test_a_decoded_and_cropped_image_equals_the_region_that_is_decoded_alone(tmp_path, side):
    """The images have odd and even margins and each chroma subsampling. None is the largest square."""
    generator = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate([(178, 218), (178, 217), (131, 100), (100, 100)]):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        for sampling in ("4:4:4", "4:2:2", "4:2:0", None):
            paths.append(str(tmp_path / f"{number}{sampling}.jpg"))
            (image if sampling else image.convert("L")).save(paths[-1], subsampling=sampling or 0)

    @pipeline_def(batch_size=len(paths), num_threads=1, device_id=None, exec_dynamic=True)
    def both():
        encoded, _ = fn.readers.file(files=paths)
        square = side or fn.reductions.min(fn.peek_image_shape(encoded, dtype=types.FLOAT)[0:2])
        region = fn.decoders.image_crop(encoded, crop_h=square, crop_w=square)
        return region, cut_region(fn.decoders.image(encoded), square, square)

    regions, squares = both().run()
    assert len(regions) == len(paths)
    assert all(map(np.array_equal, map(np.asarray, regions), map(np.asarray, squares)))


@pytest.mark.parametrize("graph", [read_crops, read_images])
@pytest.mark.parametrize(
    ("crop", "size", "region"),
    [
        (None, (64, 128), (89, 178)),
        (None, (96, 48), (218, 109)),
        (100, (64, 128), (50, 100)),
        (None, (218, 178), (218, 178)),
        (None, (1, 4096), (1, 178)),
    ],
)
def test_another_ratio_uses_the_largest_central_region(tmp_path, graph, crop, size, region):
    """An upright image, and one that its EXIF orientation turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    paths, turned = [str(tmp_path / "upright.jpg"), str(tmp_path / "turned.jpg")], Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(paths[0], quality=100, subsampling=0)
    Image.fromarray(np.rot90(pixels)).save(paths[1], quality=100, subsampling=0, exif=turned)
    dali = DaliPipeline(CropResize(crop, size), CPU, 2, Tuning(threads=1))
    height, width = region
    top, left = (218 - height + 1) // 2, (178 - width + 1) // 2
    expected = pixels[top : top + height, left : left + width]
    images = next(graph(iter([paths]), dali))
    if graph is read_images:
        images, expected = images.permute(0, 2, 3, 1).numpy(), reference.resize(expected, size)
    for image in images:
        assert np.abs(image - expected.astype(float)).max() <= 8  # what JPEG loses


def test_a_pipeline_that_dali_cannot_build_raises_decoder_error(face_paths, monkeypatch):
    def refuse(pipeline):
        raise RuntimeError('Assert on "nvml" failed')

    monkeypatch.setattr(Pipeline, "build", refuse)
    dali = DaliPipeline(CropResize(), CPU, 1, Tuning(threads=1))
    with pytest.raises(DecoderError, match="DALI failed: Assert on"):
        next(read_images(iter([face_paths[:1]]), dali))


def test_dali_runs_without_nvml_if_it_cannot_be_loaded(monkeypatch):
    """Otherwise DALI's GPU decoder would not start, although it does not need NVML to decode."""

    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    monkeypatch.setenv("DALI_DISABLE_NVML", "1")
    del os.environ["DALI_DISABLE_NVML"]
    runpy.run_path(pipeline.__file__)
    assert os.environ["DALI_DISABLE_NVML"] == "1"


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_batch_stays_valid_while_it_is_held(face_paths, kind):
    batches = opened(face_paths, kind, cache=False).batches()
    held = next(batches)
    copy = held.clone()
    take(batches, 10)
    assert torch.equal(held, copy)


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_new_loader_gives_the_same_batch_as_a_running_one_at_this_iteration(face_paths, kind):
    running, fresh = (opened(face_paths, kind, cache=False, threads=n) for n in (1, 3))
    batches = take(running.batches(), 24)
    for start in (1, 5, 23):
        assert torch.equal(batches[start], next(fresh.batches(start)))


@pytest.mark.parametrize("kind", ["dali", "resident"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loader_names_the_images_of_a_batch_of_its_rank(face_paths, kind, rank):
    loader = opened(face_paths, kind, cache=False, shard=(rank, 2), augment=False, shuffle=True)
    named = [face_paths[index] for index in loader.indices(6)]
    assert differ([next(loader.batches(6))], [load_images(named, device="cpu")]) <= 0.51 / 255


@pytest.fixture
def small(face_paths):
    """Opens a loader with four batches per epoch."""
    return lambda **options: opened(face_paths[:35], image_size=16, **options)


@pytest.fixture
def batches(small):
    return take(small().batches(), 16)


def test_iterating_gives_one_epoch_after_the_other(small, batches):
    """A loop may stop after the last batch without asking for another one, as Lightning does."""
    loader = small()
    assert len(loader) == 4 and loader.batch_size == 8
    assert same([*loader, *take(iter(loader), 4), *loader], batches[:12])
    assert same(list(loader.epoch(1)), batches[4:8]) and same(list(loader), batches[12:])


def test_an_epoch_that_was_not_finished_begins_again(small, batches):
    loader = small()
    for _ in range(2):
        assert torch.equal(next(iter(loader)), batches[0])
    loader.set_epoch(2)
    assert same(take(iter(loader), 3), batches[8:11]) and same(list(loader), batches[8:12])
    loader.set_epoch(np.int64(3))
    assert json.loads(json.dumps(loader.state_dict()))["epoch"] == 3
    assert same(list(loader), batches[12:])


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6, 8])
def test_a_loaded_state_continues_with_the_next_batch(small, batches, done):
    """As torchdata's StatefulDataLoader does. JSON can hold the state. Taking a batch uses up nothing."""
    before, after = small(), small()
    for _ in range(done // 4):
        list(before)
    take(iter(before), done % 4)
    state = json.loads(json.dumps(before.state_dict()))
    assert (state["epoch"], state["batch"]) == divmod(done, 4)
    after.load_state_dict(state)
    assert after.state_dict() == state
    if done != 3:  # the last batch of an epoch ends it
        next(iter(after))
    after.set_epoch(state["epoch"])
    assert after.state_dict() == state
    assert same([*after, *after], batches[done : 4 * (done // 4 + 2)])


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"batch_size": 7}, {"shuffle": False}, {"shard": (1, 2)}], ids=str
)
def test_a_state_of_another_loader_is_refused(small, change):
    with pytest.raises(FastaeError, match=f"^state .*{'parts' if 'shard' in change else next(iter(change))}"):
        small(**change).load_state_dict(small().state_dict())


def test_a_loader_has_nothing_that_a_framework_takes_for_a_data_loader(small):
    """Lightning and accelerate replace the samplers of objects with such attributes."""
    names = {name for name in dir(torch.utils.data.DataLoader([0])) if not name.startswith("_")}
    assert names & set(dir(small())) == {"batch_size"}


def _next_batch(loader, outcome):
    for action in (lambda: next(iter(loader)), lambda: opened(loader.paths)):
        try:
            outcome.put(action())
        except FastaeError as error:
            outcome.put(str(error))


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_forked_worker_gets_an_error_and_does_not_hang(small, kind):
    loader, context = small(kind=kind, cache=False), multiprocessing.get_context("fork")
    next(iter(loader))
    outcome = context.Queue()
    child = context.Process(target=_next_batch, args=(loader, outcome))
    child.start()
    assert "spawn" in outcome.get(timeout=60) and "spawn" in outcome.get(timeout=60)
    child.join(10)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_wait_for_the_compiler_is_logged_once(small, monkeypatch, capsys, compiled):
    loader = small()
    monkeypatch.setattr(type(loader.source), "compiles", compiled)
    assert torch.equal(next(iter(loader)), next(iter(loader)))
    assert capsys.readouterr().out.count("pixel operations") == compiled  # numba may compile, too


@pytest.fixture
def ranks(monkeypatch):
    """Sets what torchrun sets."""

    def launch(rank, size):
        for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)

    return launch


@pytest.mark.parametrize(
    ("rank", "size", "shard", "part"),
    [
        ("1", "2", "auto", (1, 2)),
        ("1", "2", (0, 1), (0, 1)),
        ("", "", "auto", (0, 1)),
        ("0", "1", None, (0, 1)),
    ],
)
def test_a_shard_is_that_of_torchrun_only_if_it_is_asked_for(small, ranks, capsys, rank, size, shard, part):
    ranks(rank, size)
    sampler = small(shard=shard).source.sampler
    assert (sampler.part, sampler.parts) == part
    assert "warning" not in capsys.readouterr().out


def test_ranks_without_a_shard_are_warned_and_an_unknown_rank_is_refused(small, ranks, capsys):
    ranks("1", "2")
    assert small().source.sampler.parts == 1
    assert "shard='auto'" in capsys.readouterr().out
    ranks("", "2")  # as Lightning's launcher
    with pytest.raises(FastaeError, match=r"^shard .*torch\.distributed"):
        small(shard="auto")


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_ranks_share_a_validation_and_see_each_image_once(face_paths, kind):
    """Two of three ranks have an image in the last batch."""
    parts = [
        opened(face_paths[:20], kind, batch_size=9, augment=False, shard=(rank, 3), cache=False)
        for rank in range(3)
    ]
    seen = [list(part) for part in parts]
    assert [[len(batch) for batch in batches] for batches in seen] == [[3, 3, 1], [3, 3, 1], [3, 3]]
    expected = load_images(face_paths[:20], device="cpu")
    images = torch.cat([batch for batches in seen for batch in batches])
    order = np.concatenate([part.indices(number) for part in parts for number in range(len(part))])
    assert differ([images], [expected[order]]) <= 0.51 / 255
    assert sorted(order) == list(range(20))


def test_images_of_any_size_are_loaded_in_their_order(tmp_path, face_paths):
    """They fill more than one batch, and the last batch is short. Antialiasing is off by default."""
    paths = []
    for number, size in enumerate([(178, 218), (300, 200), (64, 64), (500, 301)]):
        paths.append(str(tmp_path / f"{number}.jpg"))
        Image.open(face_paths[number]).resize(size).save(paths[-1])
    images = load_images(paths * 17, CropResize(size=32), "cpu")
    expected = [reference.resize(reference.cut_out(reference.decode(path)), 32) / 255 for path in paths]
    difference = images.permute(0, 2, 3, 1).numpy() - np.stack(expected * 17)
    assert np.abs(difference).max() <= 1e-5
    smooth = load_images(paths, CropResize(size=32, antialias=True), "cpu")
    assert (smooth - images[:4]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("paths", "options", "argument"), [([], {}, "paths"), (["a.jpg"], {"indices": []}, "indices")]
)
def test_loading_no_image_is_refused(paths, options, argument):
    with pytest.raises(SettingError, match=f"^{argument} is empty"):
        load_images(paths, device="cpu", **options)


def test_indices_of_images_may_be_an_array(face_paths):
    images = load_images(face_paths, CropResize(size=16), "cpu", indices=np.array([0, 2]))
    assert torch.equal(images, load_images(face_paths[:3:2], CropResize(size=16), "cpu"))


@pytest.mark.parametrize("cache", ["a\0b", "s3://bucket/cache"])
def test_a_cache_that_is_no_local_folder_is_refused(face_paths, cache):
    with pytest.raises(SettingError, match=r"^cache "):
        open_loader(face_paths, 4, cache=cache, device="cpu")


def test_a_gpus_operations_may_be_compiled_for_many_loaders():
    """PyTorch's limit is 8 for all loaders together, and the ninth would not be compiled."""
    with torch._dynamo.config.patch(recompile_limit=8):
        PixelOps(OutputFormat(), compiled=True)
        assert torch._dynamo.config.recompile_limit > 8


class DecoderOfAGpu(Decoder):
    """DALI's graph for GPUs, run on the CPU."""

    on_gpu = True


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("start", [0, 4])
def test_batches_that_a_gpu_decodes_together_are_split_again(face_paths, shuffle, start):
    """20 images in batches of 8, two batches at a time. Without shuffling, every third batch has 4 images."""
    tuning = Tuning(threads=1, decode_batch=16)
    ours, theirs = (
        DaliSource(
            ImageFiles(face_paths[:20]),
            Sampler(20, 8, 0, Augmentation(), shuffle=shuffle),
            decoder(CropResize(size=32), CPU, tuning),
        ).batches(start)
        for decoder in (DecoderOfAGpu, Decoder)
    )
    assert differ(take(ours, 7), take(theirs, 7)) <= 1e-5


@pytest.mark.parametrize("installed", [[], list(environment.DALI_BUILDS.values())], ids=["none", "two"])
def test_exactly_one_build_of_dali_is_needed(face_paths, monkeypatch, installed):
    monkeypatch.setattr(environment, "version", lambda name: "2.4.0" if name in installed else None)
    with pytest.raises(FastaeError, match=f"pip {'un' if installed else ''}install nvidia-dali"):
        opened(face_paths)


@pytest.mark.parametrize(
    ("side", "batch_size", "iterations"),
    [(178, 64, 4), (178, 100, 2), (1024, 64, 2), (3000, 64, 1), (3000, 8, 2), (178, 512, 1)],
)
def test_fewer_large_images_are_decoded_at_once_and_a_lost_file_does_not_change_this(
    monkeypatch, side, batch_size, iterations
):
    """256 images of 3000 x 3000 pixels would take 6.9 GB of a GPU's memory, and DALI holds several groups."""
    sizes = {"gone": Inspection(Fault.GONE)}
    monkeypatch.setattr(loaders, "inspect", lambda path: sizes.get(path, Inspection(None, side, side)))
    for paths in (["a"] * 1000, ["gone", *["a"] * 999]):
        sampler = Sampler(len(paths), batch_size, 0, Augmentation())
        decoder = DecoderOfAGpu(CropResize(), CPU, Tuning())
        assert DaliSource(ImageFiles(paths), sampler, decoder).group_length == iterations


def test_each_value_of_a_tuning_reaches_dali():
    """Otherwise a sweep over these values would measure nothing."""
    tuning = Tuning(threads=3, prefetch=4, hw_decoder_load=0.25, padding=12_345)
    pipeline = build_augmented([], iter(()), DaliPipeline(CropResize(100), CPU, 8, tuning))
    assert (pipeline.num_threads, pipeline.prefetch_queue_depth) == (3, 4)
    graph = pipeline.serialize()
    assert struct.pack("<f", 0.25) in graph.split(b"hw_decoder_load", 1)[1][:16]
    assert b"device_memory_padding" in graph
