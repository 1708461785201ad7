"""The DALI graphs, from image files to images.

    on a GPU    path -> read -> decode -> cut out the centred region -> resize and flip -> brightness,
                contrast, saturation: float32 (N, H, W, 3) in [0, 1]
    on a CPU    path -> read -> decode the centred region: uint8 (height, width, 3). The rest is done by
                `fastae.data.loaders.kernel`, which is faster than DALI on a CPU

The order of the images and all random parameters are data from the caller; nothing random is drawn here.
Importing this module imports DALI, so it is imported only where a pipeline is made.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from ctypes import c_void_p
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.recovery import PATIENCE, DecoderError, DecoderOutOfMemory, DecoderStalled
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.sampler import BatchParams
from fastae.data.loaders.tuning import BATCH, Tuning
from fastae.device.nvml import has_nvml
from fastae.device.pipelines import abandon, no_capture
from fastae.experiment.augment import AugmentParams, color_jitter
from fastae.utils.limits import thread_limit

# Without NVML, DALI's GPU decoder fails to start unless this is set. A container that lacks the driver
# capability "utility" has no NVML.
if not has_nvml():
    os.environ.setdefault("DALI_DISABLE_NVML", "1")

from nvidia.dali import Pipeline, backend, fn, math, types

SLICE = 0.5
"""The seconds of one of the waits that add up to the patience with DALI."""

OUT_OF_MEMORY = ("allocation failed", "Can't allocate", "bad_alloc", "out of memory")
"""DALI's error messages contain one of these phrases if memory is exhausted."""


@dataclass(frozen=True)
class DaliPipeline:
    """The settings of a DALI pipeline, and the functions that build and run it."""

    crop_resize: CropResize

    device: torch.device
    """The device of the output."""

    batch_size: int
    """The maximum number of images in a batch."""

    tuning: Tuning

    patience: float = PATIENCE
    """The seconds that BATCH images, or fewer, may take. More may take longer in proportion."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def build(self, graph: Callable[..., Any], feed: Iterator[Sequence], columns: int) -> Pipeline:
        """Builds a pipeline of one of the graphs below.

        Args:
            graph: `_crops`, `_resized` or `_augmented`. It gets this object and the inputs.
            feed: yields the inputs of each batch.
            columns: the number of inputs.

        Raises:
            DecoderError: DALI fails to start, for example because it cannot start its threads.
        """
        pipeline = Pipeline(
            batch_size=self.batch_size,
            num_threads=self.tuning.threads,
            device_id=(self.device.index or 0) if self.on_gpu else None,
            prefetch_queue_depth=self.tuning.prefetch,
            exec_dynamic=True,
        )
        with pipeline:
            inputs = fn.external_source(source=feed, num_outputs=columns, batch=True)
            pipeline.set_outputs(graph(self, *inputs))
        try:
            with no_capture():
                pipeline.build()
        except (RuntimeError, MemoryError) as error:
            raise _described(error) from error
        return pipeline

    def run(self, pipeline: Pipeline) -> Iterator[Any]:
        """Yields the pipeline's output of each batch.

        DALI gets PyTorch's current stream, and its work precedes all later work on this stream. So the host
        never waits.

        Raises:
            DecoderStalled: DALI does not return in time.
            DecoderOutOfMemory: the memory is exhausted.
            DecoderError: DALI fails for another reason.
        """
        seconds = self.patience * max(1.0, self.batch_size / BATCH)
        while True:
            stream = torch.cuda.current_stream(self.device) if self.on_gpu else None
            try:
                (images,) = _within(seconds, functools.partial(self._run_once, pipeline, stream))
            except StopIteration:
                return
            except TimeoutError:
                abandon(pipeline)
                raise DecoderStalled(f"DALI did not return within {seconds:.0f} s") from None
            except (RuntimeError, ValueError, MemoryError) as error:
                raise _described(error) from error
            yield images

    def tensor(self, images: Any) -> Tensor:
        """Converts DALI's float32 batch to a tensor: on a CPU without a copy, on a GPU by a copy.

        If PyTorch held the batch by DLPack instead, a thread of DALI would wait for the whole device before
        it frees the batch. The copy runs on PyTorch's stream.
        """
        if not self.on_gpu:
            return torch.from_dlpack(images)
        with torch.cuda.device(self.device):
            copied = torch.empty(images.shape(), device=self.device)
            stream = torch.cuda.current_stream().cuda_stream
            images.copy_to_external(c_void_p(copied.data_ptr()), c_void_p(stream), non_blocking=True)
        return copied

    def _run_once(self, pipeline: Pipeline, stream: Any) -> Any:
        if self.on_gpu:  # else a new thread would create a context on the first GPU
            torch.cuda.set_device(self.device)
        return pipeline.run(stream)


def release_memory() -> None:
    """Releases the GPU memory and pinned memory that DALI keeps without using it."""
    # DALI's module `backend` is private; nothing public releases the memory.
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Calls a function that may never return. Raises TimeoutError if it takes more than `seconds`.

    The time while this process is stopped counts at most as one SLICE: the function does not run then either.
    The function runs in a new thread, which costs 0.1 ms; a batch of 64 images takes 6 ms to decode.
    """
    outcome: Future[Any] = Future()
    Thread(target=_call, args=(function, outcome), daemon=True).start()
    try:
        for _ in range(1 + int(seconds / SLICE)):
            if wait([outcome], SLICE).done:
                return outcome.result()
        raise TimeoutError
    finally:
        # It may contain an error, which refers to this frame: the cycle would keep the pipeline alive.
        del outcome


def _call(function: Callable[[], Any], outcome: Future[Any]) -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:
        outcome.set_exception(error)
        del outcome  # the error refers to this frame, too


def _described(error: Exception) -> DecoderError:
    """Converts an error of DALI to a DecoderError whose message has one line."""
    # DALI raises RuntimeError for nearly everything: only its text says whether memory is exhausted.
    if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in OUT_OF_MEMORY):
        return DecoderOutOfMemory(
            f"out of memory while decoding images ({_gist(error)}): use a smaller --batch-size, or smaller "
            "images"
        )
    return DecoderError(thread_limit(error) or f"DALI failed: {_gist(error)}")


def _gist(error: Exception) -> str:
    """The essential line of DALI's message: the first line of its last paragraph."""
    return (str(error).rpartition("\n\n")[2].splitlines() or [type(error).__name__])[0].strip(" :")


def read_crops(batches: Iterator[Sequence[str]], dali: DaliPipeline) -> Iterator[list[np.ndarray]]:
    """Yields the centres of the files of each batch, uint8 (L, W, 3), decoded on the CPU without a copy."""
    for images in dali.run(dali.build(_crops, ((_characters(paths),) for paths in batches), 1)):
        yield list(map(np.asarray, images))


def read_images(batches: Iterator[Sequence[str]], dali: DaliPipeline) -> Iterator[Tensor]:
    """Yields the files of each batch, cut and resized: float32 (N, 3, H, W) in [0, 255], channels-last."""
    return _tensors(dali, dali.build(_resized, ((_characters(paths),) for paths in batches), 1))


def read_augmented(
    paths: Sequence[str], batches: Iterator[BatchParams], dali: DaliPipeline
) -> Iterator[Tensor]:
    """Yields augmented batches: float32 (N, 3, H, W) in [0, 1], channels-last."""
    return _tensors(dali, build_augmented(paths, batches, dali))


def _tensors(dali: DaliPipeline, pipeline: Pipeline) -> Iterator[Tensor]:
    for images in dali.run(pipeline):
        yield dali.tensor(images.as_tensor()).permute(0, 3, 1, 2)


def build_augmented(paths: Sequence[str], batches: Iterator[BatchParams], dali: DaliPipeline) -> Pipeline:
    """Builds the pipeline of `read_augmented`."""
    columns = 1 + len(AugmentParams._fields)
    return dali.build(_augmented, (_inputs(paths, batch) for batch in batches), columns)


def _inputs(paths: Sequence[str], batch: BatchParams) -> tuple[Any, ...]:
    """The inputs of `_augmented`: the files, and the fields of `AugmentParams`.

    For `flip`, this is the corner from which an image is resized: (0, 0), or (0, 1) to flip it.
    """
    flip = batch.augment.flip
    starts = np.stack([np.zeros_like(flip), flip], axis=1).astype(np.float32)
    # A change of an image has the shape (1, 1, 1), which broadcasts against height, width and channels.
    changes = batch.augment.map(lambda values: values[:, None, None, None])
    return _characters([paths[index] for index in batch.indices]), *changes._replace(flip=starts)


def _crops(dali: DaliPipeline, path: Any) -> Any:
    """Decodes the centred regions of files: uint8 (height, width, 3).

    If a margin is odd, the region is half a pixel below the centre or to the right of it.
    """
    # Files are read, not mapped: a file that shrinks while it is mapped kills the process. This is as fast.
    encoded = fn.io.file.read(path, dont_use_mmap=True)
    height, width = _region(dali.crop_resize, encoded)
    options = {
        "output_type": types.RGB,
        # The GPU then upsamples chroma like the CPU, and gives nearly the same pixels.
        "jpeg_fancy_upsampling": True,
        "hw_decoder_load": dali.tuning.hw_decoder_load,
        "device_memory_padding": dali.tuning.padding,
        "host_memory_padding": dali.tuning.padding,
    }
    if dali.on_gpu:
        # nvImageCodec 0.9 crashes if it decodes regions of a batch with several kinds of chroma subsampling.
        return cut_region(fn.decoders.image(encoded, device="mixed", **options), height, width)
    return fn.decoders.image_crop(encoded, crop_h=height, crop_w=width, **options)


def _region(crop_resize: CropResize, encoded: Any) -> tuple[Any, Any]:
    """The height and width of the region that is used of each encoded image."""
    side: Any = crop_resize.crop
    if side and crop_resize.is_square:
        return side, side
    sides = types.Constant([side, side]) if side else fn.peek_image_shape(encoded, dtype=types.FLOAT)[0:2]
    if crop_resize.is_square:
        side = fn.reductions.min(sides)
        return side, side
    ratio = types.Constant(crop_resize.shape, dtype=types.FLOAT)
    region = math.max(math.floor(fn.reductions.min(sides / ratio) * ratio + 0.5), 1.0)
    return region[0], region[1]


def cut_region(images: Any, height: Any, width: Any) -> Any:
    """Cuts out the centre of decoded images, with the same pixels as decoding only this region."""
    return fn.crop(images, crop_h=height, crop_w=width)


def _resized(dali: DaliPipeline, path: Any, start: Any = None) -> Any:
    """Decodes and resizes files: float32 (H, W, 3) in [0, 255]. Resizing from right to left flips."""
    region = {} if start is None else {"roi_start": start, "roi_end": 1.0 - start, "roi_relative": True}
    return fn.resize(
        _crops(dali, path),
        size=dali.crop_resize.shape,
        interp_type=types.INTERP_LINEAR,
        antialias=dali.crop_resize.antialias,
        dtype=types.FLOAT,
        minibatch_size=dali.batch_size,  # by default, kernels are launched for every 32 images
        **region,
    )


def _augmented(dali: DaliPipeline, path: Any, *changes: Any) -> Any:
    """Decodes, resizes, flips and augments files: float32 (H, W, 3) in [0, 1]."""
    params = AugmentParams(*changes)
    images = _resized(dali, path, params.flip)
    mean = fn.reductions.mean(images, axes=[0, 1], keep_dims=True)
    (images,) = color_jitter([images], [mean], params, arrays=_Interleaved)
    return images


class _Interleaved:
    """`fastae.experiment.augment.Arrays` for DALI, with all channels in one array, as its last axis."""

    @staticmethod
    def highest(channels: Sequence[Any]) -> Any:
        return fn.reductions.max(channels[0], axes=[2], keep_dims=True)

    @staticmethod
    def lowest(channels: Sequence[Any]) -> Any:
        return fn.reductions.min(channels[0], axes=[2], keep_dims=True)

    maximum = staticmethod(math.max)
    clamp = staticmethod(math.clamp)


def _characters(paths: Sequence[str]) -> list[np.ndarray]:
    """Returns each path as an array of bytes, DALI's form of a string."""
    return [np.frombuffer(os.fsencode(path), np.uint8) for path in paths]
