"""The DALI graphs: JPEG files in, images out. What the GPU can do is done there.

    on a GPU    path -> read -> decode -> cut out the centred square -> resize and flip -> brightness,
                contrast, saturation: float32 (N, S, S, 3) in [0, 1]
    on a CPU    path -> read -> decode the centred square: uint8 (L, L, 3) of any side L; the rest is
                `fastae.data.loaders.pixel_ops`, which is faster there

Which image comes when, and every random parameter, arrive as data from the caller; nothing is drawn
here. Importing this module imports DALI, so it is imported where a pipeline is made and no earlier.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch

from fastae import augment
from fastae.data.files.recovery import PATIENCE, DecoderError, DecoderOutOfMemory, DecoderStalled
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.sampler import BatchParams
from fastae.data.loaders.tuning import Tuning
from fastae.utils.environment import has_nvml
from fastae.utils.limits import thread_limit

# A container without the capability "utility" has no NVML; the GPU's decoder would then refuse to begin.
if not has_nvml():
    os.environ.setdefault("DALI_DISABLE_NVML", "1")

from nvidia.dali import Pipeline, backend, fn, math, types

OUT_OF_MEMORY = ("allocation failed", "Can't allocate", "bad_alloc", "out of memory")
"""In messages of DALI's."""


@dataclass(frozen=True)
class DaliPipeline:
    """Where and how a graph runs: the device of its output, its largest batch.

    patience: seconds that it may take for a batch.
    """

    crop_resize: CropResize
    device: torch.device
    batch_size: int
    tuning: Tuning
    patience: float = PATIENCE

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def decodes_on_gpu(self) -> bool:
        return self.on_gpu and not self.tuning.decode_on_cpu

    def build(self, graph: Callable[..., Any], feed: Iterator[Sequence], columns: int) -> Pipeline:
        """A pipeline of one of the graphs below, whose `columns` inputs come from `feed`, batch by batch.

        Raises DecoderError if DALI refuses to begin, for example if it cannot start its threads.
        """
        pipeline = Pipeline(
            batch_size=self.batch_size,
            num_threads=self.tuning.threads,
            device_id=(self.device.index or 0) if self.on_gpu else None,
            prefetch_queue_depth=self.tuning.prefetch,
            exec_dynamic=True,
        )
        with pipeline:
            pipeline.set_outputs(
                graph(self, *fn.external_source(source=feed, num_outputs=columns, batch=True))
            )
        try:
            pipeline.build()
        except (RuntimeError, MemoryError) as error:
            raise _described(error) from error
        return pipeline

    def run(self, pipeline: Pipeline) -> Iterator[Any]:
        """Its outputs, batch by batch.

        Raises DecoderError if it fails: DecoderStalled if it does not return, DecoderOutOfMemory.
        Given PyTorch's stream, DALI orders its work before ours there: the host never waits.
        """
        while True:
            stream = self._stream()
            try:
                (images,) = _within(self.patience, functools.partial(self._run_once, pipeline, stream))
            except StopIteration:
                return
            except TimeoutError:
                _abandon(pipeline)
                raise DecoderStalled(f"DALI did not return within {self.patience:.0f} s") from None
            except (RuntimeError, ValueError, MemoryError) as error:
                raise _described(error) from error
            yield images

    def tensor(self, images: Any) -> torch.Tensor:
        """DALI's float32 batch for PyTorch: on a CPU without a copy.

        On a GPU a copy, on PyTorch's stream: to free a batch that PyTorch holds by DLPack, a thread of DALI's
        waits for the whole device.
        """
        if not self.on_gpu:
            return torch.from_dlpack(images)
        with torch.cuda.device(self.device):
            copied = torch.empty(images.shape(), device=self.device)
            stream = torch.cuda.current_stream().cuda_stream
            images.copy_to_external(c_void_p(copied.data_ptr()), c_void_p(stream), non_blocking=True)
        return copied

    def _stream(self) -> Any:
        """PyTorch's stream on the device; None on a CPU. Leaves the other GPUs without a context."""
        if not self.on_gpu:
            return None
        with torch.cuda.device(self.device):
            return torch.cuda.current_stream()

    def _run_once(self, pipeline: Pipeline, stream: Any) -> Any:
        if self.on_gpu:  # a thread begins on the first GPU, where DALI would open a context
            torch.cuda.set_device(self.device)
        return pipeline.run(stream)


def release_memory() -> None:
    """Gives back what DALI keeps of a GPU's memory, and of pinned memory, without using it."""
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a call that may never return returns or raises; TimeoutError if it does neither in time.

    In a thread of its own, which takes 0.1 ms; a batch of 64 images takes 6 ms to decode.
    """
    outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    Thread(target=_call, args=(function, outcomes), daemon=True).start()
    try:
        result, error = outcomes.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # which refers to this frame, and so would keep itself and the pipeline
    return result


def _call(function: Callable[[], Any], outcomes: SimpleQueue[tuple[Any, BaseException | None]]) -> None:
    try:
        outcomes.put((function(), None))
    except BaseException as error:
        outcomes.put((None, error))


def _abandon(pipeline: Pipeline) -> None:
    """Lets the process end without it: DALI, which has no public way to this, would wait for it."""
    Pipeline._pipes.discard(weakref.ref(pipeline))


def _described(error: Exception) -> DecoderError:
    """An error of DALI's in one line."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return DecoderOutOfMemory(
            f"out of memory while images were decoded ({_gist(error)}): a smaller --batch-size or smaller "
            "images need less"
        )
    return DecoderError(thread_limit(error) or f"DALI failed: {_gist(error)}")


def _gist(error: Exception) -> str:
    """One line of what DALI says: the last paragraph's first, behind where the operator was defined."""
    return (str(error).rpartition("\n\n")[2].splitlines() or [type(error).__name__])[0].strip(" :")


def read_crops(
    batches: Iterator[Sequence[str]], dali: DaliPipeline
) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """The centred squares of these files, decoded on the CPU: uint8 (N, L, L, 3), without a copy.

    If their sides differ, a list of (L, L, 3).
    """
    for images in dali.run(dali.build(_crops, ((_characters(paths),) for paths in batches), 1)):
        if images.is_dense_tensor():
            yield torch.from_dlpack(images.as_tensor())
        else:
            yield [torch.from_dlpack(image) for image in images]


def read_images(batches: Iterator[Sequence[str]], dali: DaliPipeline) -> Iterator[torch.Tensor]:
    """These files as they are, resized in the graph: float32 (N, 3, S, S) in [0, 255], channels-last."""
    return _tensors(dali, dali.build(_resized, ((_characters(paths),) for paths in batches), 1))


def read_augmented(
    paths: Sequence[str], batches: Iterator[BatchParams], dali: DaliPipeline
) -> Iterator[torch.Tensor]:
    """These batches: float32 (N, 3, S, S) in [0, 1], channels-last.

    With `colors_in_step` they are only flipped, and in [0, 255].
    """
    return _tensors(dali, build_augmented(paths, batches, dali))


def _tensors(dali: DaliPipeline, pipeline: Pipeline) -> Iterator[torch.Tensor]:
    for images in dali.run(pipeline):
        yield dali.tensor(images.as_tensor()).permute(0, 3, 1, 2)


def build_augmented(paths: Sequence[str], batches: Iterator[BatchParams], dali: DaliPipeline) -> Pipeline:
    """The pipeline of `read_augmented`."""
    if dali.tuning.colors_in_step:
        return dali.build(_resized, (_flipped(paths, params) for params in batches), 2)
    # Each image gets (1, 1, 1), which broadcasts against height, width, channels.
    feed = (
        (
            *_flipped(paths, params),
            *(x[:, None, None, None] for x in (params.brightness, params.contrast, params.saturation)),
        )
        for params in batches
    )
    return dali.build(_augmented, feed, 5)


def _flipped(paths: Sequence[str], params: BatchParams) -> tuple[list[np.ndarray], np.ndarray]:
    """The files of a batch, and where the resize begins: at 0, 0, or at the right edge 0, 1."""
    starts = np.stack([np.zeros_like(params.flip), params.flip], axis=1).astype(np.float32)
    return _characters([paths[index] for index in params.indices]), starts


def _crops(dali: DaliPipeline, path: Any) -> Any:
    """Files to uint8 (L, L, 3): the centred square; half a pixel rounds down and right."""
    # Read, not mapped: a file that shrinks while it is mapped kills the process, and reading is as fast.
    encoded = fn.io.file.read(path, dont_use_mmap=True)
    side: Any = dali.crop_resize.crop
    if side is None:
        side = fn.reductions.min(fn.peek_image_shape(encoded, dtype=types.FLOAT)[0:2])
    options = {
        "output_type": types.RGB,
        # GPU decoding then upsamples chroma as the CPU's does: nearly the same pixels on both.
        "jpeg_fancy_upsampling": True,
        "hw_decoder_load": dali.tuning.hw_decoder_load,
        "device_memory_padding": dali.tuning.padding,
        "host_memory_padding": dali.tuning.padding,
    }
    if dali.decodes_on_gpu:
        # nvImageCodec 0.9 crashes over regions of images in a batch whose chroma is sampled in several ways.
        return cut_square(fn.decoders.image(encoded, device="mixed", **options), side)
    images = fn.decoders.image_crop(encoded, crop_h=side, crop_w=side, **options)
    return images.gpu() if dali.on_gpu else images


def cut_square(images: Any, side: Any) -> Any:
    """The centred square of decoded images: the pixels that decoding that region alone gives."""
    return fn.crop(images, crop_h=side, crop_w=side)


def _resized(dali: DaliPipeline, path: Any, start: Any = None) -> Any:
    """Files to float32 (S, S, 3) in [0, 255]. A resize that starts at the right edge flips."""
    size, antialias = dali.crop_resize.size, dali.crop_resize.antialias
    region = {} if start is None else {"roi_start": start, "roi_end": 1.0 - start, "roi_relative": True}
    return fn.resize(
        _crops(dali, path),
        size=(size, size),
        interp_type=types.INTERP_LINEAR,
        antialias=antialias,
        dtype=types.FLOAT,
        minibatch_size=dali.batch_size,  # of 32, it would launch its kernels for every 32 images
        **region,
    )


def _augmented(
    dali: DaliPipeline, path: Any, start: Any, brightness: Any, contrast: Any, saturation: Any
) -> Any:
    images = _resized(dali, path, start)
    mean = fn.reductions.mean(images, axes=[0, 1], keep_dims=True)
    (images,) = augment.color_jitter([images], [mean], brightness, contrast, saturation, arrays=_Interleaved)
    return images


class _Interleaved:
    """`fastae.augment.Arrays` for one array that holds all channels of an image, as its last axis."""

    @staticmethod
    def highest(channels: Sequence[Any]) -> Any:
        return fn.reductions.max(channels[0], axes=[2], keep_dims=True)

    @staticmethod
    def lowest(channels: Sequence[Any]) -> Any:
        return fn.reductions.min(channels[0], axes=[2], keep_dims=True)

    maximum = staticmethod(math.max)
    clamp = staticmethod(math.clamp)


def _characters(paths: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(os.fsencode(path), np.uint8) for path in paths]
