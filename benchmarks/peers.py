"""What others would use to load the same data: each peer does all of fastae's work, in its own way.

read -> decode JPEG -> central square -> 128x128, bilinear, no antialias -> flip -> brightness, contrast,
saturation with `tf.image`'s formulas -> float32 batches. Each is given the same files, parameters and
number of workers or threads. `tests/benchmarks` holds what they put out against fastae's batches.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastae import augment
from fastae.data.order import BatchPlan, Order

SIZE = 128
Batches = Iterator[np.ndarray]
Sample = tuple[str, bool, float, float, float]
"""Path, flip, brightness, contrast, saturation."""


def samples(paths: Sequence[str], order: Order) -> Iterator[Sample]:
    """fastae's own order and parameters, image by image, without end."""
    for plan in order.plans():
        yield from _rows(paths, plan)


def _rows(paths: Sequence[str], plan: BatchPlan) -> Iterator[Sample]:
    columns = (plan.flip, plan.brightness, plan.contrast, plan.saturation)
    for index, *values in zip(plan.indices, *(column.tolist() for column in columns), strict=True):
        yield paths[index], *values


class _Numpy:
    """`fastae.augment.Arrays` in NumPy, for one array with the channels last."""

    highest = staticmethod(lambda channels: channels[0].max(-1, keepdims=True))
    lowest = staticmethod(lambda channels: channels[0].min(-1, keepdims=True))
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)


def finish(image: Image.Image, flip: bool, *parameters: float) -> np.ndarray:
    """A decoded Pillow image to float32 (128, 128, 3) in [0, 1]."""
    side = min(image.size)
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    scale = side / SIZE
    # An affine transform samples between pixels, as TensorFlow does; Pillow's resize always filters.
    image = image.transform(
        (SIZE, SIZE),
        Image.Transform.AFFINE,
        (scale, 0, left, 0, scale, top),
        Image.Resampling.BILINEAR,
    )
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return recolour(np.asarray(image, np.float32) * np.float32(1 / 255), *parameters)


def recolour(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """float32 (H, W, 3) in [0, 1] with `tf.image`'s formulas, in NumPy."""
    mean = pixels.mean((0, 1), keepdims=True)
    factors = (np.float32(value) for value in (brightness, contrast, saturation))
    return augment.colour([pixels], [mean], *factors, arrays=_Numpy)[0]


def load_with_pillow(sample: Sample) -> np.ndarray:
    path, *rest = sample
    return finish(Image.open(path).convert("RGB"), *rest)


def pillow(paths: Sequence[str], order: Order, workers: int, scratch: Path) -> Batches:
    """Pillow and NumPy in the worker processes of a `torch.utils.data.DataLoader`."""
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset):
        def __getitem__(self, sample: Sample) -> np.ndarray:
            return load_with_pillow(sample)

    loader = DataLoader(
        Images(),
        batch_size=order.batch_size,
        sampler=_Endless(paths, order),
        num_workers=workers,
    )
    yield from (batch.numpy() for batch in loader)


class _Endless:
    """A sampler whose "indices" are whole samples."""

    def __init__(self, paths: Sequence[str], order: Order) -> None:
        self._paths, self._order = paths, order

    def __iter__(self) -> Iterator[Sample]:
        return samples(self._paths, self._order)


def tf_data(paths: Sequence[str], order: Order, workers: int, scratch: Path) -> Batches:
    """TensorFlow's input pipeline with the article's own `tf.image` functions."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(workers)
    tf.config.threading.set_inter_op_parallelism_threads(workers)
    # Enough epochs for a measurement, as arrays: a Python generator would slow TensorFlow down.
    plans = [order.plan(i) for i in range(4 * -(-order.count // order.batch_size))]
    columns = [
        np.concatenate([getattr(plan, name) for plan in plans])
        for name in ("indices", "flip", "brightness", "contrast", "saturation")
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
        .batch(order.batch_size, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    yield from dataset.as_numpy_iterator()


def webdataset(paths: Sequence[str], order: Order, workers: int, scratch: Path) -> Batches:
    """JPEGs in tar shards, read in sequence by WebDataset's worker processes, decoded by Pillow."""
    import webdataset as wds

    shards = _write_shards(paths, order, workers, scratch)

    def load(sample: dict) -> np.ndarray:
        return finish(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"), *json.loads(sample["json"]))

    dataset = wds.WebDataset(shards, shardshuffle=False).map(load).repeat()
    loader = wds.WebLoader(
        dataset.batched(order.batch_size, collation_fn=np.stack, partial=False),
        num_workers=workers,
        batch_size=None,
    )
    yield from loader


def _write_shards(paths: Sequence[str], order: Order, number: int, scratch: Path) -> list[str]:
    """The first epoch's samples in batches, dealt out to `number` shards as the workers alternate."""
    names = [str(scratch / f"{shard}.tar") for shard in range(number)]
    batches = order.count // order.batch_size
    for shard, name in enumerate(names):
        with tarfile.open(name, "w") as tar:
            for batch in range(shard, batches, number):
                for place, (path, *parameters) in enumerate(_rows(paths, order.plan(batch))):
                    key = f"{batch:06d}{place:06d}"
                    _add(tar, f"{key}.jpg", Path(path).read_bytes())
                    _add(tar, f"{key}.json", json.dumps(parameters).encode())
    return names


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


PEERS: dict[str, tuple[str, Callable[..., Batches]]] = {
    "Pillow + DataLoader": ("PIL", pillow),
    "tf.data": ("tensorflow", tf_data),
    "WebDataset": ("webdataset", webdataset),
}
"""Name -> the module it needs, and its batches."""


@functools.cache
def missing(peer: str) -> str | None:
    """Why this peer cannot run here, or None."""
    module = PEERS[peer][0]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed (pip install '.[peers]')"
    return None


def first_batches(peer: str, paths: Sequence[str], order: Order, scratch: Path, number: int) -> list:
    """The first batches of a peer, for tests: float32 (N, 128, 128, 3)."""
    batches = PEERS[peer][1](paths, order, 2, scratch)
    return [np.asarray(batch) for batch in itertools.islice(batches, number)]
