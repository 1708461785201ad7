"""Decodes image files in order, for evaluation, the resident store and the deep check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from tempfile import NamedTemporaryFile
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from fastae.data.files.faults import USABLE, Fault
from fastae.data.files.inspect import Inspection, inspect
from fastae.data.files.recovery import (
    FILE_PATIENCE,
    DecoderError,
    DecoderOutOfMemory,
    ImageFiles,
    recovered,
)
from fastae.data.loaders.cpu_ops import CpuOps
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.pixel_ops import PixelOps
from fastae.data.loaders.tuning import BATCH, DEFAULT, Tuning
from fastae.device.compiling import can_compile
from fastae.errors import FastaeError
from fastae.utils.environment import dali_builds
from fastae.utils.ranks import rank_cores

SMALLEST = 16
"""The side in pixels of the picture that tests whether a decoder works, unless the crop is larger."""

MOST_THREADS = 8
"""The maximum number of decoding threads on a CPU. More gain little for images of 178x218."""

_first_process: int | None = None


@dataclass(frozen=True)
class Decoder:
    """Decodes images on one device. `open_decoder` makes it, with `tuning.threads` set."""

    crop_resize: CropResize
    device: torch.device
    tuning: Tuning
    output: OutputFormat = OutputFormat()  # noqa: RUF009 (it is frozen)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def pixel_ops(self) -> PixelOps:
        """The operations on a GPU."""
        return PixelOps(self.output, self.compiled)

    @cached_property
    def compiled(self) -> bool:
        """Whether torch.compile is used for the operations on a GPU. A CPU needs no search for a compiler."""
        wanted = self.tuning.compiled
        return can_compile(self.device) if wanted is None else wanted

    @property
    def cpu_ops(self) -> CpuOps:
        assert self.tuning.threads
        return CpuOps(self.crop_resize, self.output, self.tuning.threads)

    def decode(self, files: ImageFiles, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yields images in batches, without augmentation: (n, H, 3, W) float32 in [0, 255] on the device.

        At the end, the GPU memory that DALI has reserved is released.

        Args:
            files: the images' files. Bad ones are replaced.
            indices: the images to decode. Default: all.

        Raises:
            NoneLeft, DecoderError: as for `recovered`.
        """
        from fastae.data.loaders.pipeline import release_memory

        indices = range(len(files)) if indices is None else indices
        batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]

        def restart(position: int, patience: float) -> Iterator[Any]:
            paths = ([files.paths[index] for index in batch] for batch in batches[position:])
            return self.stream(paths, BATCH, patience)

        decoded = recovered(files, self.faults, restart, indices_at=batches.__getitem__)
        yield from decoded if self.on_gpu else self.cpu_ops.resized(decoded)
        if self.on_gpu:
            release_memory()

    def faults(self, paths: Sequence[str], together: int = 1) -> Iterator[Fault | None]:
        """Yields each file's fault in order; None for a file that can be decoded.

        `together` files are decoded at once, and one by one if that fails.
        Raises DecoderError if the decoder also fails for a valid picture of the same size as a file: then the
        GPU may be lost, or its memory full.
        """
        batches = [paths[start : start + together] for start in range(0, len(paths), together)]
        done = 0
        while done < len(batches):
            try:
                for _ in self.stream(batches[done:], together, FILE_PATIENCE):
                    yield from [None] * len(batches[done])
                    done += 1
            except DecoderError as error:
                if together > 1:
                    yield from self.faults(batches[done])
                else:
                    self._require_working_decoder(inspect(batches[done][0]), error)
                    yield error.fault
                done += 1

    def stream(self, batches: Iterable[Sequence[str]], size: int, patience: float) -> Iterator[Any]:
        """Yields the images of each batch of at most `size` files: on a GPU like `decode`, on a CPU crops.

        Raises DecoderError for a bad file, and DecoderStalled as `DaliPipeline.patience` says.
        """
        from fastae.data.loaders.pipeline import DaliPipeline, read_crops, read_images

        # The JPEG engine's pixels differ slightly from those of the GPU's cores. If both were used, the
        # pixels of an image would depend on its index in the batch. So only the cores decode.
        tuning = replace(self.tuning, hw_decoder_load=0.0)
        dali = DaliPipeline(self.crop_resize, self.device, size, tuning=tuning, patience=patience)
        if self.on_gpu:
            return (images.transpose(1, 2) for images in read_images(iter(batches), dali))
        return read_crops(iter(batches), dali)

    def _require_working_decoder(self, file: Inspection, error: DecoderError) -> None:
        """Raises DecoderError unless the decoder can decode a valid picture of the file's size.

        `error` is the error that the file itself raised.
        """
        width = height = self.crop_resize.crop or SMALLEST
        if file.fault in USABLE:  # else the size in its header may be anything
            if isinstance(error, DecoderOutOfMemory):
                raise error
            width, height = max(width, file.width), max(height, file.height)
        with _picture(width, height) as path:
            for _ in self.stream([[path]], 1, FILE_PATIENCE):
                pass


def refuse_forked() -> None:
    """Raises FastaeError in a fork of a process that has opened a decoder: a fork lacks its threads."""
    global _first_process
    if _first_process not in (None, os.getpid()):
        raise FastaeError(
            "this process is a fork of one that has used fastae already, without its threads: "
            "start it by multiprocessing's 'spawn' instead"
        )
    _first_process = os.getpid()


def open_decoder(
    crop_resize: CropResize,
    device: torch.device,
    tuning: Tuning = DEFAULT,
    output: OutputFormat = OutputFormat(),  # noqa: B008 (it is frozen)
) -> Decoder:
    """Makes a decoder for a device.

    Raises FastaeError unless exactly one build of DALI is installed, and in a fork (`refuse_forked`).
    """
    refuse_forked()
    require_dali()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    threads = tuning.threads or default_threads(device)
    return Decoder(crop_resize, device, replace(tuning, threads=threads), output)


def default_threads(device: torch.device) -> int:
    """The default number of decoding threads.

    On a CPU it is one per core, and at most 8. For a GPU, two cores are left for training. The ranks that
    torchrun starts on a machine share its cores.
    """
    return max(1, rank_cores() - 2) if device.type == "cuda" else min(MOST_THREADS, rank_cores())


def require_dali() -> None:
    """Raises FastaeError unless exactly one build of DALI is installed."""
    installed = list(dali_builds().values())
    if not installed:
        raise FastaeError(
            "NVIDIA DALI is not installed: pip install nvidia-dali-cuda130 "
            "(nvidia-dali-cuda120 for a driver older than 580)"
        )
    if len(installed) > 1:
        raise FastaeError(
            f"two builds of DALI are installed and overwrite each other: "
            f"pip uninstall {' '.join(installed)}, then install the one that fits your driver"
        )


@contextmanager
def _picture(width: int, height: int) -> Iterator[str]:
    """Yields the path of a JPEG that any decoder accepts. It is in memory, so a full disk does not matter.

    Without a /proc, which gives the memory a path, it is a temporary file.
    """
    in_memory = os.path.exists("/proc/self/fd")
    made: IO[bytes]
    made = os.fdopen(os.memfd_create("fastae"), "wb") if in_memory else NamedTemporaryFile()  # noqa: SIM115
    with made as file:
        Image.new("RGB", (width, height)).save(file, "JPEG")
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if in_memory else file.name
