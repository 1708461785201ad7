"""The DALI graphs: JPEG files in, float32 images (N, S, S, 3) in [0, 1] out, on GPU or CPU alike.

    path -> read -> decode -> cut out and resize (-> flip -> brightness, contrast, saturation)

Which image comes when, and every random parameter, arrive as data from the caller; nothing is drawn
here.

Importing this module imports DALI, so it is imported where a pipeline is made and no earlier.
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

    def build(self, graph: Any, **arguments: Any) -> Pipeline:
        pipeline = graph(
            on_gpu=self.on_gpu,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if self.on_gpu else None,
            **arguments,
        )
        pipeline.build()
        return pipeline

    def outputs(self, pipeline: Pipeline) -> Iterator[torch.Tensor]:
        """The pipeline's batches as channels-last (N, 3, S, S) tensors, without a copy.

        Given PyTorch's stream, DALI orders its work before ours there: the host never waits.
        """
        while True:
            stream = torch.cuda.current_stream(self.device) if self.on_gpu else None
            try:
                (images,) = pipeline.run(stream)
            except StopIteration:
                return
            yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def read_images(paths: Sequence[str], geometry: Geometry, engine: Engine) -> Iterator[torch.Tensor]:
    """The images in order, as they are: float32 batches (N, 3, S, S) in [0, 1]; the last may be short."""

    def feed() -> Iterator[list[np.ndarray]]:
        for first in range(0, len(paths), engine.batch_size):
            yield [_characters(path) for path in paths[first : first + engine.batch_size]]

    return engine.outputs(engine.build(_plain_graph, feed=feed(), geometry=geometry))


def read_batches(
    paths: Sequence[str], plans: Iterator[BatchPlan], geometry: Geometry, engine: Engine
) -> Iterator[torch.Tensor]:
    """The batches that `plans` asks for: float32 (N, 3, S, S) in [0, 1], augmented."""

    def feed() -> Iterator[tuple]:
        for plan in plans:
            yield (
                [_characters(paths[index]) for index in plan.indices],
                plan.flip.astype(np.int32),
                _per_image(plan.brightness),
                _per_image(plan.contrast),
                _per_image(plan.saturation),
            )

    return engine.outputs(engine.build(_augmented_graph, feed=feed(), geometry=geometry))


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=2)
def _plain_graph(feed: Iterator, geometry: Geometry, on_gpu: bool) -> Any:
    path = fn.external_source(source=feed, batch=True)
    return _decode(path, geometry, on_gpu) * np.float32(1 / 255)


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=2)
def _augmented_graph(feed: Iterator, geometry: Geometry, on_gpu: bool) -> Any:
    path, flip, brightness, contrast, saturation = fn.external_source(source=feed, num_outputs=5, batch=True)
    images = fn.flip(_decode(path, geometry, on_gpu), horizontal=flip) * np.float32(1 / 255)
    if on_gpu:
        brightness, contrast, saturation = brightness.gpu(), contrast.gpu(), saturation.gpu()
    return augment.colour(images, brightness, contrast, saturation, _DaliArrays)


def _decode(path: Any, geometry: Geometry, on_gpu: bool) -> Any:
    """Files to float32 images (S, S, 3) in [0, 255]."""
    encoded = fn.io.file.read(path)
    sides = fn.peek_image_shape(encoded)[0:2]
    side = fn.reductions.min(sides) if geometry.crop is None else np.int64(geometry.crop)
    # Decodes the region alone. Measured faster on the CPU than a resize that reads a region of the
    # whole image, which moreover would look beyond the region's edge where it enlarges.
    images = fn.decoders.image_slice(
        encoded,
        fn.cast((sides - side) // 2, dtype=types.INT32),
        fn.cast(fn.stack(side, side), dtype=types.INT32),
        axes=[0, 1],
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        # GPU decoding then upsamples chroma as the CPU's does: nearly the same pixels on both.
        jpeg_fancy_upsampling=True,
        device_memory_padding=DECODER_PADDING,
        host_memory_padding=DECODER_PADDING,
    )
    return fn.resize(
        images,
        size=(geometry.size, geometry.size),
        interp_type=types.INTERP_LINEAR,
        antialias=geometry.antialias,
        dtype=types.FLOAT,
    )


class _DaliArrays:
    """`fastae.augment.Arrays` for one image in height, width, channel order."""

    @staticmethod
    def pixel_mean(x: Any) -> Any:
        return fn.reductions.mean(x, axes=[0, 1], keep_dims=True)

    @staticmethod
    def channel_max(x: Any) -> Any:
        return fn.reductions.max(x, axes=[2], keep_dims=True)

    @staticmethod
    def channel_min(x: Any) -> Any:
        return fn.reductions.min(x, axes=[2], keep_dims=True)

    minimum = staticmethod(math.min)
    maximum = staticmethod(math.max)


def _characters(path: str) -> np.ndarray:
    return np.frombuffer(os.fsencode(path), np.uint8)


def _per_image(values: np.ndarray) -> np.ndarray:
    # Each sample gets (1, 1, 1), which broadcasts against height, width, channels.
    return values[:, None, None, None]
