"""The DALI graphs: JPEG files in, images out. What the GPU can do is done there.

    on a GPU    path -> read -> decode the centred square -> resize -> flip -> brightness, contrast,
                saturation: float32 (N, S, S, 3) in [0, 1]
    on a CPU    path -> read -> decode the centred square: uint8 (L, L, 3) of any side L; the rest is
                `fastae.data.pixels`, which is faster there

Which image comes when, and every random parameter, arrive as data from the caller; nothing is drawn
here. Importing this module imports DALI, so it is imported where a pipeline is made and no earlier.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types

from fastae import augment
from fastae.data.geometry import Geometry
from fastae.data.order import BatchPlan

PREFETCH = 2
"""Batches that DALI prepares ahead."""

# The decoder's defaults (16 MiB on the device, 8 MiB pinned, for each thread) are made for photographs
# of many megapixels; where a file needs more than this, its buffer grows once.
DECODER_PADDING = 1 << 20


@dataclass(frozen=True)
class Engine:
    """Where a graph runs: the device of its output, its largest batch, its CPU threads."""

    device: torch.device
    batch_size: int
    threads: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def run(self, graph: Any, feed: Iterator, geometry: Geometry) -> Iterator[Any]:
        """DALI's batches, one for each item of `feed`. Raises RuntimeError or ValueError for a bad file.

        Given PyTorch's stream, DALI orders its work before ours there: the host never waits.
        """
        pipeline: Pipeline = graph(
            feed,
            geometry,
            self.on_gpu,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if self.on_gpu else None,
        )
        pipeline.build()
        while True:
            stream = torch.cuda.current_stream(self.device) if self.on_gpu else None
            try:
                (images,) = pipeline.run(stream)
            except StopIteration:
                return
            yield images


def read_regions(
    batches: Iterator[Sequence[str]], geometry: Geometry, engine: Engine
) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """The centred squares of these files, decoded on the CPU: uint8 (N, L, L, 3), without a copy.

    Where their sides differ, a list of (L, L, 3).
    """
    feed = ([_characters(path) for path in paths] for paths in batches)
    for images in engine.run(_regions_graph, feed, geometry):
        if images.is_dense_tensor():
            yield torch.from_dlpack(images.as_tensor())
        else:
            yield [torch.from_dlpack(image) for image in images]


def read_images(
    batches: Iterator[Sequence[str]], geometry: Geometry, engine: Engine
) -> Iterator[torch.Tensor]:
    """These files as they are, resized in the graph: float32 (N, 3, S, S) in [0, 255], channels-last."""
    feed = ([_characters(path) for path in paths] for paths in batches)
    for images in engine.run(_resized_graph, feed, geometry):
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def read_augmented(
    paths: Sequence[str], plans: Iterator[BatchPlan], geometry: Geometry, engine: Engine
) -> Iterator[torch.Tensor]:
    """The batches that `plans` asks for, all of it in the graph: float32 (N, 3, S, S) in [0, 1]."""
    feed = (
        (
            [_characters(paths[index]) for index in plan.indices],
            plan.flip.astype(np.int32),
            _per_image(plan.brightness),
            _per_image(plan.contrast),
            _per_image(plan.saturation),
        )
        for plan in plans
    )
    for images in engine.run(_augmented_graph, feed, geometry):
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=PREFETCH)
def _regions_graph(feed: Iterator, geometry: Geometry, on_gpu: bool) -> Any:
    return _decode(fn.external_source(source=feed, batch=True), geometry, on_gpu)


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=PREFETCH)
def _resized_graph(feed: Iterator, geometry: Geometry, on_gpu: bool) -> Any:
    return _resize(_decode(fn.external_source(source=feed, batch=True), geometry, on_gpu), geometry)


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=PREFETCH)
def _augmented_graph(feed: Iterator, geometry: Geometry, on_gpu: bool) -> Any:
    path, flip, brightness, contrast, saturation = fn.external_source(source=feed, num_outputs=5, batch=True)
    images = _resize(_decode(path, geometry, on_gpu), geometry)
    images = fn.flip(images, horizontal=flip) * np.float32(1 / 255)
    mean = fn.reductions.mean(images, axes=[0, 1], keep_dims=True)
    if on_gpu:
        brightness, contrast, saturation = brightness.gpu(), contrast.gpu(), saturation.gpu()
    (images,) = augment.colour([images], [mean], brightness, contrast, saturation, arrays=_Interleaved)
    return images


def _decode(path: Any, geometry: Geometry, on_gpu: bool) -> Any:
    """Files to uint8 (L, L, 3): the centred square alone is decoded; half a pixel rounds down and right."""
    encoded = fn.io.file.read(path)
    side: Any = geometry.crop
    if side is None:
        side = fn.reductions.min(fn.peek_image_shape(encoded, dtype=types.FLOAT)[0:2])
    return fn.decoders.image_crop(
        encoded,
        crop_h=side,
        crop_w=side,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        # GPU decoding then upsamples chroma as the CPU's does: nearly the same pixels on both.
        jpeg_fancy_upsampling=True,
        device_memory_padding=DECODER_PADDING,
        host_memory_padding=DECODER_PADDING,
    )


def _resize(images: Any, geometry: Geometry) -> Any:
    """uint8 (L, L, 3) to float32 (S, S, 3), both in [0, 255]."""
    return fn.resize(
        images,
        size=(geometry.size, geometry.size),
        interp_type=types.INTERP_LINEAR,
        antialias=geometry.antialias,
        dtype=types.FLOAT,
    )


class _Interleaved:
    """`fastae.augment.Arrays` for one array that holds all channels of an image, as its last axis."""

    @staticmethod
    def highest(channels: Sequence[Any]) -> Any:
        return fn.reductions.max(channels[0], axes=[2], keep_dims=True)

    @staticmethod
    def lowest(channels: Sequence[Any]) -> Any:
        return fn.reductions.min(channels[0], axes=[2], keep_dims=True)

    minimum = staticmethod(math.min)
    maximum = staticmethod(math.max)


def _characters(path: str) -> np.ndarray:
    return np.frombuffer(os.fsencode(path), np.uint8)


def _per_image(values: np.ndarray) -> np.ndarray:
    # Each sample gets (1, 1, 1), which broadcasts against height, width, channels.
    return values[:, None, None, None]
