"""Other loaders of the same data, from JPEG files to augmented float batches.

All read the same files with the same number of workers or threads. A peer is one of two kinds:

- It does fastae's work in its own way: read -> decode -> central square -> 128x128, bilinear, no antialias ->
  flip -> brightness, contrast, saturation by `tf.image`'s formulas, with the order and the parameters of
  fastae's sampler. `tests/benchmarks` compares its batches with fastae's.
- It is a library's own pipeline, as its documentation gives it, with random numbers and color formulas of its
  own, and without antialiasing.

`Peer.does_not` lists the work of fastae's loaders that a peer does not do. No peer does more than fastae.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.task import SIZE, Task, shrink
from fastae.experiment import augment
from fastae.experiment.augment import AugmentParams

if TYPE_CHECKING:
    from torch import Tensor

Sample = tuple[str, AugmentParams]
"""The path of an image, and its changes as numbers."""


class Work(StrEnum):
    """Work of fastae's loaders that not all do, as the end of "does not ..."."""

    BAD_FILES = "replace files that cannot be decoded"
    SEEDED = "make batch i a function of (seed, i)"
    EPOCHS = "draw a new order and new changes in every epoch"
    COLORS = "change colors by tf.image's formulas"
    FRACTIONS = "keep fractions of gray levels until the end"
    TRANSFORM = "decode with the accurate transform"
    SIZES = "read images of different sizes"
    DECODING = "decode in every epoch (pixels are decoded and resized once)"


Batches = Iterator[Any]
"""Batches without end, as arrays or tensors: float32 (N, 128, 128, 3) or (N, 3, 128, 128) in [0, 1]."""


def samples(task: Task) -> Iterator[Sample]:
    """Yields the samples of fastae's sampler, image by image, without end."""
    for batch in map(task.sampler.at, itertools.count()):
        columns = (column.tolist() for column in batch.augment)
        for index, params in zip(batch.indices, map(AugmentParams, *columns), strict=True):
            yield task.paths[index], params


class _Numpy:
    """`fastae.experiment.augment.Arrays` in NumPy, for one array with the channels last."""

    highest = staticmethod(lambda channels: channels[0].max(-1, keepdims=True))
    lowest = staticmethod(lambda channels: channels[0].min(-1, keepdims=True))
    maximum = staticmethod(np.maximum)
    clamp = staticmethod(np.clip)


def load_with_pillow(sample: Sample) -> np.ndarray:
    """Loads and augments a sample: float32 (128, 128, 3) in [0, 1]."""
    path, params = sample
    image = shrink(path)
    if params.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, np.float32)
    mean = pixels.mean((0, 1), keepdims=True)
    return augment.color_jitter([pixels], [mean], AugmentParams(*map(np.float32, params)), arrays=_Numpy)[0]


def pillow(task: Task) -> Batches:
    """Pillow and NumPy in the worker processes of a `torch.utils.data.DataLoader`."""
    return _data_loader(load_with_pillow, task)


def _data_loader(load: Callable[[Sample], Any], task: Task) -> Iterator[Tensor]:
    from torch.utils.data import DataLoader

    loaded: Any = _Loaded(load)
    loader = DataLoader(
        loaded,
        batch_size=task.sampler.batch_size,
        sampler=samples(task),  # type: ignore[arg-type]  # the only pass over it is the first
        num_workers=task.workers,
        pin_memory=task.device != "cpu",
    )
    return iter(loader)


class _Loaded:
    """A data set whose "indices" are samples."""

    def __init__(self, load: Callable[[Sample], Any]) -> None:
        self._load = load

    def __getitem__(self, sample: Sample) -> Any:
        return self._load(sample)


def torchvision(task: Task) -> Batches:
    """torchvision's decoder and v2 transforms in the worker processes of a `torch.utils.data.DataLoader`."""
    import torch
    from torchvision.transforms import v2

    ranges = task.sampler.augmentation
    transform = v2.Compose(
        [
            v2.Resize(SIZE, antialias=False),
            v2.CenterCrop(SIZE),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(ranges.brightness, ranges.contrast, ranges.saturation),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return _data_loader(functools.partial(_load_with_torchvision, transform), task)


def _load_with_torchvision(transform: Callable[[Tensor], Tensor], sample: Sample) -> Tensor:
    from torchvision.io import decode_image

    return transform(decode_image(sample[0], mode="RGB"))


def plain_dali(task: Task) -> Batches:
    """DALI's reader, decoder and operators, on the device, by its own iterator for PyTorch."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    on_gpu = task.device != "cpu"
    ranges = task.sampler.augmentation

    def factor(width: float) -> Any:
        return fn.random.uniform(range=(1 - width, 1 + width))

    @pipeline_def(
        batch_size=task.sampler.batch_size, num_threads=task.workers, device_id=0 if on_gpu else None
    )
    def pipeline() -> Any:
        files, _ = fn.readers.file(files=list(task.paths), random_shuffle=True, name="files")
        images = fn.decoders.image(files, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        images = fn.resize(images, size=SIZE, mode="not_smaller", antialias=False)
        images = fn.crop(images, crop=(SIZE, SIZE))
        images = fn.color_twist(
            images,
            brightness=factor(ranges.brightness),
            contrast=factor(ranges.contrast),
            saturation=factor(ranges.saturation),
        )
        return fn.crop_mirror_normalize(images, std=[255.0] * 3, mirror=fn.random.coin_flip())

    loader = DALIGenericIterator(
        pipeline(), ["images"], reader_name="files", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (batch,) in loader:
            yield batch["images"]


def tf_data(task: Task) -> Batches:
    """TensorFlow's input pipeline with the article's own `tf.image` functions."""
    import tensorflow as tf

    sampler, workers = task.sampler, task.workers
    tf.config.threading.set_intra_op_parallelism_threads(workers)
    tf.config.threading.set_inter_op_parallelism_threads(workers)
    # Arrays with enough epochs for a measurement: a Python generator would slow TensorFlow down.
    batches = [sampler.at(i) for i in range(4 * -(-sampler.count // sampler.batch_size))]
    columns = [
        np.concatenate([batch.indices for batch in batches]),
        *map(np.concatenate, zip(*(batch.augment for batch in batches), strict=True)),
    ]
    files = tf.constant(task.paths)

    def load(index: Any, flip: Any, brightness: Any, contrast: Any, saturation: Any) -> Any:
        content = tf.io.read_file(files[index])
        height, width = tf.unstack(tf.io.extract_jpeg_shape(content)[:2])
        side = tf.minimum(height, width)
        window = tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])
        pixels = tf.io.decode_and_crop_jpeg(content, window, channels=3)
        pixels = tf.image.resize(pixels, [SIZE, SIZE]) / 255.0
        pixels = tf.cond(flip, lambda: tf.image.flip_left_right(pixels), lambda: pixels)
        pixels = tf.image.adjust_brightness(pixels, brightness)
        pixels = tf.image.adjust_contrast(pixels, contrast)
        pixels = tf.image.adjust_saturation(pixels, saturation)
        return tf.clip_by_value(pixels, 0.0, 1.0)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    dataset = (
        tf.data.Dataset.from_tensor_slices(tuple(columns))
        .repeat()
        .map(load, num_parallel_calls=workers)
        .batch(sampler.batch_size, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    yield from dataset.as_numpy_iterator()


def ffcv(task: Task, raw: bool = False) -> Batches:
    """FFCV's file and decoder, and compiled loops (`benchmarks.ffcv_peer`)."""
    from benchmarks.ffcv_peer import batches

    return batches(task, raw)


class Peer(NamedTuple):
    """Another loader."""

    module: str
    """The module that it needs."""

    batches: Callable[[Task], Batches]

    does_not: tuple[Work, ...]
    """The work of fastae's loaders that it does not do."""

    install: str = "pip install -e '.[peers]'"
    """How to install it."""


OWN_PIPELINE = (Work.SEEDED, Work.COLORS, Work.FRACTIONS)
FROM_SOURCE = "to be built from source, see benchmarks/README.md"

PEERS = {
    "plain DALI": Peer("nvidia.dali", plain_dali, (Work.BAD_FILES, *OWN_PIPELINE)),
    "torchvision v2": Peer("torchvision", torchvision, (Work.BAD_FILES, *OWN_PIPELINE)),
    "Pillow + DataLoader": Peer("PIL", pillow, (Work.BAD_FILES, Work.FRACTIONS)),
    "tf.data": Peer("tensorflow", tf_data, (Work.BAD_FILES, Work.EPOCHS, Work.TRANSFORM)),
    "FFCV": Peer("ffcv", ffcv, (Work.BAD_FILES, Work.EPOCHS, Work.TRANSFORM, Work.SIZES), FROM_SOURCE),
    "FFCV raw": Peer(
        "ffcv",
        functools.partial(ffcv, raw=True),
        (Work.BAD_FILES, Work.EPOCHS, Work.FRACTIONS, Work.DECODING),
        FROM_SOURCE,
    ),
}


def missing(peer: str) -> str | None:
    """Returns the reason why this peer cannot run here; None if it can."""
    module, install = PEERS[peer].module, PEERS[peer].install
    try:
        importlib.import_module(module)
    except Exception as error:  # any error: torchvision raises RuntimeError if it does not match torch
        if isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name):
            return f"{module} is not installed ({install})"
        first_line, _, _ = str(error).partition("\n")
        return f"{module} cannot be imported: {type(error).__name__}: {first_line}"
    return None
