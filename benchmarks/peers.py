"""Other loaders of the same data. Each peer does fastae's work in its own way:

read -> decode JPEG -> central square -> 128x128, bilinear, no antialias -> flip -> brightness, contrast,
saturation with `tf.image`'s formulas -> float32 batches. All have the same files, parameters and number
of workers or threads. `tests/benchmarks` compares their batches with fastae's.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from fastae.data.loaders.sampler import Sampler
from fastae.experiment import augment
from fastae.experiment.augment import AugmentParams

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 128
Batches = Iterator[np.ndarray]
Sample = tuple[str, AugmentParams]
"""The path of an image, and its changes as numbers."""


def samples(paths: Sequence[str], sampler: Sampler) -> Iterator[Sample]:
    """Yields the samples of fastae's sampler, image by image, without end."""
    for batch in map(sampler.at, itertools.count()):
        columns = (column.tolist() for column in batch.augment)
        for index, params in zip(batch.indices, map(AugmentParams, *columns), strict=True):
            yield paths[index], params


class _Numpy:
    """`fastae.experiment.augment.Arrays` in NumPy, for one array with the channels last."""

    highest = staticmethod(lambda channels: channels[0].max(-1, keepdims=True))
    lowest = staticmethod(lambda channels: channels[0].min(-1, keepdims=True))
    maximum = staticmethod(np.maximum)
    clamp = staticmethod(np.clip)


def square(width: int, height: int) -> tuple[int, int, int]:
    """Returns the left, top and side of the central square."""
    side = min(width, height)
    return (width - side + 1) // 2, (height - side + 1) // 2, side


def finish(image: Image.Image, params: AugmentParams) -> np.ndarray:
    """Crops, resizes, flips and augments a Pillow image: float32 (128, 128, 3) in [0, 1]."""
    left, top, side = square(*image.size)
    scale = side / SIZE
    # An affine transform interpolates between pixels like TensorFlow. Pillow's resize always filters.
    image = image.transform(
        (SIZE, SIZE),
        Image.Transform.AFFINE,
        (scale, 0, left, 0, scale, top),
        Image.Resampling.BILINEAR,
    )
    if params.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return color_jitter(np.asarray(image, np.float32), params)


def color_jitter(pixels: np.ndarray, params: AugmentParams) -> np.ndarray:
    """Changes colors by `tf.image`'s formulas in NumPy: float32 (H, W, 3) in [0, 255] -> [0, 1]."""
    mean = pixels.mean((0, 1), keepdims=True)
    return augment.color_jitter([pixels], [mean], AugmentParams(*map(np.float32, params)), arrays=_Numpy)[0]


def load_with_pillow(sample: Sample) -> np.ndarray:
    """Loads and augments a sample: float32 (128, 128, 3) in [0, 1]."""
    path, params = sample
    return finish(Image.open(path).convert("RGB"), params)


def pillow(paths: Sequence[str], sampler: Sampler, workers: int, scratch: Path) -> Batches:
    """Pillow and NumPy in the worker processes of a `torch.utils.data.DataLoader`."""
    yield from (batch.numpy() for batch in _data_loader(load_with_pillow, paths, sampler, workers))


def _data_loader(
    load: Callable[[Sample], Any], paths: Sequence[str], sampler: Sampler, workers: int
) -> Iterator[Tensor]:
    from torch.utils.data import DataLoader

    loaded: Any = _Loaded(load)
    yield from DataLoader(
        loaded,
        batch_size=sampler.batch_size,
        sampler=_Endless(paths, sampler),
        num_workers=workers,
    )


class _Loaded:
    """A data set whose "indices" are samples."""

    def __init__(self, load: Callable[[Sample], Any]) -> None:
        self._load = load

    def __getitem__(self, sample: Sample) -> Any:
        return self._load(sample)


class _Endless:
    """A PyTorch sampler that yields samples as the "indices" of `_Loaded`."""

    def __init__(self, paths: Sequence[str], sampler: Sampler) -> None:
        self._paths, self._sampler = paths, sampler

    def __iter__(self) -> Iterator[Sample]:
        return samples(self._paths, self._sampler)


class _Torch:
    """`augment.Arrays` in PyTorch, for one tensor with the channels first, and numbers as factors."""

    highest = staticmethod(lambda channels: channels[0].amax(0, keepdim=True))
    lowest = staticmethod(lambda channels: channels[0].amin(0, keepdim=True))
    maximum = staticmethod(lambda x, y: x.clamp(min=y))
    clamp = staticmethod(lambda x, low, high: x.clamp(low, high))


def load_with_torchvision(sample: Sample) -> Tensor:
    """Loads and augments a sample: float32 (3, 128, 128) in [0, 1]."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional

    path, params = sample
    pixels = decode_jpeg(read_file(path), mode=ImageReadMode.RGB)
    left, top, side = square(pixels.shape[2], pixels.shape[1])
    # The resize of bytes would round to bytes, so pixels are converted to float first.
    pixels = functional.to_dtype(pixels, torch.float32)
    pixels = functional.resized_crop(pixels, top, left, side, side, [SIZE, SIZE], antialias=False)
    if params.flip:
        pixels = functional.horizontal_flip(pixels)
    # torchvision's brightness, contrast and saturation are Pillow's formulas, not `tf.image`'s.
    return augment.color_jitter([pixels], [pixels.mean((1, 2), keepdim=True)], params, arrays=_Torch)[0]


def torchvision(paths: Sequence[str], sampler: Sampler, workers: int, scratch: Path) -> Batches:
    """torchvision's decoder and transforms in the worker processes of a `torch.utils.data.DataLoader`."""
    loader = _data_loader(load_with_torchvision, paths, sampler, workers)
    yield from (batch.permute(0, 2, 3, 1).numpy() for batch in loader)


def tf_data(paths: Sequence[str], sampler: Sampler, workers: int, scratch: Path) -> Batches:
    """TensorFlow's input pipeline with the article's own `tf.image` functions."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(workers)
    tf.config.threading.set_inter_op_parallelism_threads(workers)
    # Arrays with enough epochs for a measurement: a Python generator would slow TensorFlow down.
    batches = [sampler.at(i) for i in range(4 * -(-sampler.count // sampler.batch_size))]
    columns = [
        np.concatenate([batch.indices for batch in batches]),
        *map(np.concatenate, zip(*(batch.augment for batch in batches), strict=True)),
    ]
    files = tf.constant(paths)

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


def ffcv(paths: Sequence[str], sampler: Sampler, workers: int, scratch: Path) -> Batches:
    """FFCV's file and decoder, and compiled loops (`benchmarks.ffcv_peer`)."""
    from benchmarks.ffcv_peer import batches

    return batches(paths, sampler, workers, scratch, SIZE)


class Peer(NamedTuple):
    """Another loader."""

    module: str
    """The module that it needs."""

    batches: Callable[[Sequence[str], Sampler, int, Path], Batches]
    """Yields batches, given the files, the sampler, the number of workers and a scratch folder."""

    install: str = "pip install '.[peers]'"
    """How to install it."""


PEERS = {
    "Pillow + DataLoader": Peer("PIL", pillow),
    "torchvision": Peer("torchvision", torchvision),
    "tf.data": Peer("tensorflow", tf_data),
    "FFCV": Peer("ffcv", ffcv, "to be built from source, see benchmarks/README.md"),
}


def missing(peer: str) -> str | None:
    """Returns the reason why this peer cannot run here; None if it can."""
    module, _, install = PEERS[peer]
    package = module.split(".")[0]
    try:
        importlib.import_module(module)
    except Exception as error:  # any error: torchvision raises RuntimeError if it does not match torch
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return f"{package} is not installed ({install})"
        first_line, _, _ = str(error).partition("\n")
        return f"{package} cannot be imported: {type(error).__name__}: {first_line}"
    return None


def first_batches(peer: str, paths: Sequence[str], sampler: Sampler, scratch: Path, number: int) -> list:
    """Returns the first batches of a peer, for tests: float32 (N, 128, 128, 3) in [0, 1]."""
    batches = PEERS[peer].batches(paths, sampler, 2, scratch)
    return [np.array(batch) for batch in itertools.islice(batches, number)]  # FFCV reuses its buffers
