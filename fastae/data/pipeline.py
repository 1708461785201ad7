"""The DALI graphs: JPEG files in, images out. What the GPU can do is done there.

    on a GPU    path -> read -> decode the centred square -> resize -> flip -> brightness, contrast,
                saturation: float32 (N, S, S, 3) in [0, 1]
    on a CPU    path -> read -> decode the centred square: uint8 (L, L, 3) of any side L; the rest is
                `fastae.data.pixel_ops`, which is faster there

Which image comes when, and every random parameter, arrive as data from the caller; nothing is drawn
here. Importing this module imports DALI, so it is imported where a pipeline is made and no earlier.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types

from fastae import augment
from fastae.data.crop_resize import CropResize
from fastae.data.recovery import PATIENCE, DecoderError, DecoderStalled
from fastae.data.sampler import BatchParams
from fastae.data.tuning import DEFAULT, Tuning


@dataclass(frozen=True)
class DaliPipeline:
    """Where and how a graph runs: the device of its output, its largest batch, its CPU threads.

    patience: seconds that it may take for a batch.
    """

    device: torch.device
    batch_size: int
    threads: int
    tuning: Tuning = DEFAULT
    patience: float = PATIENCE

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def build(self, graph: Any, feed: Iterator, crop_resize: CropResize) -> Pipeline:
        """A pipeline of one of the graphs below, which takes its batches from `feed`."""
        pipeline: Pipeline = graph(
            feed,
            crop_resize,
            self.on_gpu,
            self.tuning,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if self.on_gpu else None,
            prefetch_queue_depth=self.tuning.prefetch,
        )
        pipeline.build()
        return pipeline

    def run(self, pipeline: Pipeline) -> Iterator[Any]:
        """Its outputs, batch by batch. Raises DecoderError where it fails, and if it does not return.

        Given PyTorch's stream, DALI orders its work before ours there: the host never waits.
        """
        caller = _Caller()
        try:
            while True:
                stream = torch.cuda.current_stream(self.device) if self.on_gpu else None
                try:
                    (images,) = caller.call(lambda: pipeline.run(stream), self.patience)  # noqa: B023
                except StopIteration:
                    return
                except TimeoutError:
                    _abandon(pipeline)
                    raise DecoderStalled(f"DALI did not return within {self.patience:.0f} s") from None
                except (RuntimeError, ValueError) as error:
                    raise DecoderError(f"DALI failed: {_gist(error)}") from error
                yield images
        finally:
            caller.close()


class _Caller:
    """A thread that makes calls which may never return, so that whoever waits for them can give up.

    Takes 0.05 ms a call; a batch of 64 images takes 6 ms to decode.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """What it returns or raises; TimeoutError where it does not in time, and no more calls then."""
        self._calls.put(function)
        try:
            result, error = self._outcomes.get(timeout=seconds)
        except Empty:
            raise TimeoutError from None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which refers to this frame, and so would keep itself and the pipeline
        return result

    def close(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Makes one call; returns False after the last. Keeps nothing of it: a batch is large."""
        function = self._calls.get()
        if function is None:
            return False
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = function(), None
        except BaseException as error:
            outcome = None, error
        del function  # first, so that what it holds is the caller's to destroy
        self._outcomes.put(outcome)
        del outcome  # an error refers to this frame
        return True


def _abandon(pipeline: Pipeline) -> None:
    """Lets the process end without it: DALI, which has no public way to this, would wait for it."""
    Pipeline._pipes.discard(weakref.ref(pipeline))


def _gist(error: Exception) -> str:
    """One line of what DALI says: the last paragraph's first, behind where the operator was defined."""
    return (str(error).rpartition("\n\n")[2].splitlines() or [type(error).__name__])[0].strip(" :")


def read_crops(
    batches: Iterator[Sequence[str]], crop_resize: CropResize, dali: DaliPipeline
) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """The centred squares of these files, decoded on the CPU: uint8 (N, L, L, 3), without a copy.

    Where their sides differ, a list of (L, L, 3).
    """
    feed = ([_characters(path) for path in paths] for paths in batches)
    for images in dali.run(dali.build(_crops_graph, feed, crop_resize)):
        if images.is_dense_tensor():
            yield torch.from_dlpack(images.as_tensor())
        else:
            yield [torch.from_dlpack(image) for image in images]


def read_images(
    batches: Iterator[Sequence[str]], crop_resize: CropResize, dali: DaliPipeline
) -> Iterator[torch.Tensor]:
    """These files as they are, resized in the graph: float32 (N, 3, S, S) in [0, 255], channels-last."""
    feed = ([_characters(path) for path in paths] for paths in batches)
    for images in dali.run(dali.build(_resized_graph, feed, crop_resize)):
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def read_augmented(
    paths: Sequence[str], batches: Iterator[BatchParams], crop_resize: CropResize, dali: DaliPipeline
) -> Iterator[torch.Tensor]:
    """These batches, all of it in the graph: float32 (N, 3, S, S) in [0, 1]."""
    for images in dali.run(build_augmented(paths, batches, crop_resize, dali)):
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def build_augmented(
    paths: Sequence[str], batches: Iterator[BatchParams], crop_resize: CropResize, dali: DaliPipeline
) -> Pipeline:
    """The pipeline of `read_augmented`."""
    feed = (
        (
            [_characters(paths[index]) for index in params.indices],
            params.flip.astype(np.int32),
            _per_image(params.brightness),
            _per_image(params.contrast),
            _per_image(params.saturation),
        )
        for params in batches
    )
    return dali.build(_augmented_graph, feed, crop_resize)


@pipeline_def(exec_dynamic=True)
def _crops_graph(feed: Iterator, crop_resize: CropResize, on_gpu: bool, tuning: Tuning) -> Any:
    return _decode(fn.external_source(source=feed, batch=True), crop_resize, on_gpu, tuning)


@pipeline_def(exec_dynamic=True)
def _resized_graph(feed: Iterator, crop_resize: CropResize, on_gpu: bool, tuning: Tuning) -> Any:
    return _resize(
        _decode(fn.external_source(source=feed, batch=True), crop_resize, on_gpu, tuning), crop_resize
    )


@pipeline_def(exec_dynamic=True)
def _augmented_graph(feed: Iterator, crop_resize: CropResize, on_gpu: bool, tuning: Tuning) -> Any:
    path, flip, brightness, contrast, saturation = fn.external_source(source=feed, num_outputs=5, batch=True)
    images = _resize(_decode(path, crop_resize, on_gpu, tuning), crop_resize)
    images = fn.flip(images, horizontal=flip) * np.float32(1 / 255)
    mean = fn.reductions.mean(images, axes=[0, 1], keep_dims=True)
    if on_gpu:
        brightness, contrast, saturation = brightness.gpu(), contrast.gpu(), saturation.gpu()
    (images,) = augment.color_jitter([images], [mean], brightness, contrast, saturation, arrays=_Interleaved)
    return images


def _decode(path: Any, crop_resize: CropResize, on_gpu: bool, tuning: Tuning) -> Any:
    """Files to uint8 (L, L, 3): the centred square alone is decoded; half a pixel rounds down and right."""
    # Read, not mapped: a file that shrinks while it is mapped kills the process, and reading is as fast.
    encoded = fn.io.file.read(path, dont_use_mmap=True)
    side: Any = crop_resize.crop
    if side is None:
        side = fn.reductions.min(fn.peek_image_shape(encoded, dtype=types.FLOAT)[0:2])
    mixed = on_gpu and not tuning.decode_on_cpu
    images = fn.decoders.image_crop(
        encoded,
        crop_h=side,
        crop_w=side,
        device="mixed" if mixed else "cpu",
        output_type=types.RGB,
        # GPU decoding then upsamples chroma as the CPU's does: nearly the same pixels on both.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=tuning.hw_decoder_load,
        device_memory_padding=tuning.padding,
        host_memory_padding=tuning.padding,
    )
    return images.gpu() if on_gpu and not mixed else images


def _resize(images: Any, crop_resize: CropResize) -> Any:
    """uint8 (L, L, 3) to float32 (S, S, 3), both in [0, 255]."""
    return fn.resize(
        images,
        size=(crop_resize.size, crop_resize.size),
        interp_type=types.INTERP_LINEAR,
        antialias=crop_resize.antialias,
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
