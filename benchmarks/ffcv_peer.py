"""FFCV as two peers in `benchmarks.peers`: one file of all images, and loops that Numba compiles.

The file contains either the JPEGs, copied byte by byte, since FFCV's own writer would encode the pixels
again, or in raw mode the decoded and resized pixels, as fastae's resident store does. The JPEGs must all have
the same size, which FFCV's simple decoder needs: its other decoders shrink with a filter. FFCV's flips and
color changes draw their own random numbers and are not `tf.image`'s. So everything after the decoder is one
operation of our own, such as FFCV's users write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from ffcv.fields import RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.task import SIZE, Task, shrink
from fastae.experiment.augment import EPSILON

FLOAT = np.dtype(np.float32)


def batches(task: Task, raw: bool) -> Iterator[np.ndarray]:
    """Yields the whole batches of the first epoch, repeatedly: float32 (N, 128, 128, 3) in [0, 1].

    A batch is a buffer that FFCV overwrites a few batches later. If `raw`, FFCV's file contains pixels.
    """
    field, sampler = _Pixels if raw else _Jpeg, task.sampler
    file = str(task.scratch / "images.beton")
    writer = DatasetWriter(file, {"image": field()}, num_workers=task.workers)
    writer.from_indexed_dataset([(path,) for path in task.paths])
    batches = [sampler.at(i) for i in range(sampler.count // sampler.batch_size)]
    indices = np.concatenate([batch.indices for batch in batches])
    # The parameters are stored by image, since FFCV passes the images' indices to an operation.
    parameters = np.zeros((sampler.count, 4), np.float32)
    for column, name in enumerate(("flip", "brightness", "contrast", "saturation")):
        parameters[indices, column] = np.concatenate([getattr(batch.augment, name) for batch in batches])
    loader = Loader(
        file,
        sampler.batch_size,
        num_workers=task.workers,
        order=OrderOption.SEQUENTIAL,
        indices=indices,
        pipelines={"image": [SimpleRGBImageDecoder(), _Change(parameters, _flipped if raw else _resize)]},
        custom_fields={"image": field},
    )
    while True:
        epoch = iter(loader)
        try:
            for (images,) in epoch:
                yield images
        finally:
            epoch.close()
            epoch.join()  # a thread in compiled code must not outlive the interpreter


class _Jpeg(RGBImageField):
    """A field that stores the bytes of a JPEG file, given its path. FFCV's own field needs pixels."""

    def encode(self, destination: np.ndarray, path: str, malloc: Callable) -> None:
        content = np.fromfile(path, np.uint8)
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["width"], destination["height"] = Image.open(path).size
        destination["data_ptr"], stored = malloc(content.nbytes)
        stored[:] = content


class _Pixels(RGBImageField):
    """A field that stores the pixels (128, 128, 3) of an image, given its path."""

    def encode(self, destination: np.ndarray, path: str, malloc: Callable) -> None:
        super().encode(destination, shrink(path), malloc)


class _Change(Operation):
    """Resizes, flips and augments: uint8 (N, H, W, 3) -> float32 (N, 128, 128, 3) in [0, 1].

    `parameters` is float32 (images, 4): flip, brightness, contrast and saturation of each image. `resize` is
    `_resize` or `_flipped`.
    """

    def __init__(self, parameters: np.ndarray, resize: Callable) -> None:
        super().__init__()
        self._parameters, self._resize = parameters, resize

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape = (SIZE, SIZE, 3)
        return replace(previous_state, shape=shape, dtype=FLOAT), AllocationQuery(shape, FLOAT)

    def generate_code(self) -> Callable:
        parameters = self._parameters
        resize, color_jitter = Compiler.compile(self._resize), Compiler.compile(_color_jitter)
        each = Compiler.get_iterator()

        def change(images: np.ndarray, changed: np.ndarray, indices: np.ndarray) -> np.ndarray:
            for i in each(len(indices)):
                mine = parameters[indices[i]]
                resize(images[i], mine[0] > 0, changed[i])
                color_jitter(changed[i], mine[1], mine[2], mine[3])
            return changed

        change.is_parallel = change.with_indices = True  # type: ignore[attr-defined]
        return change


def _resize(image: np.ndarray, flip: bool, resized: np.ndarray) -> None:
    """Resizes the central square, bilinear with half-pixel centres, and flips it; the result is in [0, 1]."""
    size = len(resized)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    unit = np.float32(1 / 255)
    for y in range(size):
        down = max((y + 0.5) * side / size - 0.5, 0.0)
        upper = int(down)
        lower = min(upper + 1, side - 1)
        down = np.float32(down - upper)
        for x in range(size):
            across = max((x + 0.5) * side / size - 0.5, 0.0)
            near = int(across)
            far = min(near + 1, side - 1)
            across = np.float32(across - near)
            to = size - 1 - x if flip else x
            for channel in range(3):
                a = np.float32(image[top + upper, left + near, channel])
                b = np.float32(image[top + upper, left + far, channel])
                c = np.float32(image[top + lower, left + near, channel])
                d = np.float32(image[top + lower, left + far, channel])
                a += (b - a) * across
                c += (d - c) * across
                resized[y, to, channel] = (a + (c - a) * down) * unit


def _flipped(image: np.ndarray, flip: bool, flipped: np.ndarray) -> None:
    """Flips an image that has the right size already; the result is in [0, 1]."""
    unit = np.float32(1 / 255)
    if flip:
        np.multiply(image[:, ::-1], unit, flipped)
    else:
        np.multiply(image, unit, flipped)


def _color_jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> None:
    """`fastae.experiment.augment.color_jitter` pixel by pixel, in place."""
    height, width = image.shape[:2]
    means = np.zeros(3, np.float32)
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                means[channel] += image[y, x, channel]
    # x + brightness, then (x - m) f + m, as one multiplication and one addition per channel.
    means /= np.float32(height * width)
    offsets = means * (np.float32(1) - contrast) + brightness
    for y in range(height):
        for x in range(width):
            red = image[y, x, 0] * contrast + offsets[0]
            green = image[y, x, 1] * contrast + offsets[1]
            blue = image[y, x, 2] * contrast + offsets[2]
            value = max(red, green, blue)
            spread = max(value - min(red, green, blue), np.float32(EPSILON))
            scale = max(min(value / spread, saturation), np.float32(0))
            for channel, old in enumerate((red, green, blue)):
                new = value - (value - old) * scale
                image[y, x, channel] = min(max(new, np.float32(0)), np.float32(1))
