"""Batches for training, from JPEG files: `open_loader(...).batches(start)`.

    dali        every epoch the files are read and decoded by DALI, and augmented: on a GPU all of it in
                DALI's graph; on a CPU the pixels' part in `fastae.data.pixel_ops`
    resident    every file is decoded once, into one array on the training device; each step gathers a
                batch from it and augments that
    auto        resident where that fits in half of the free memory, else dali

Every batch is a function of (seed, iteration), so the iteration number is a loader's whole state, and
all loaders give the same batches (resident: to the rounding of its stored pixels).
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fastae.augment import Augmentation
from fastae.data.crop_resize import CropResize
from fastae.data.decode import Decoder
from fastae.data.folder import open_folder
from fastae.data.jpeg import FileFault
from fastae.data.memory import free_bytes
from fastae.data.pixel_ops import ParamTensors, PixelOps, channel_means, to_batch
from fastae.data.recovery import ImageFiles, RecoverableStream
from fastae.data.resident import Store, open_store, store_bytes
from fastae.data.sampler import Sampler
from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.device import can_compile
from fastae.utils.environment import DALI_BUILDS, version

KINDS = ("auto", "dali", "resident")


class Loader(ABC):
    """kind: 'dali' or 'resident'. note: why, where that was chosen by `auto`."""

    kind: str
    note: str
    sampler: Sampler

    def reseeded(self, seed: int) -> Self:
        """The same images in another order, over the same files or pixels."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, seed=seed)
        return other

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """The batches of iterations start, start + 1, ..., without end.

        Each is float32, (N, 3, S, S), channels-last, in [0, 1], on the loader's device.
        """
        return itertools.starmap(self.images, self.inputs(start))

    @abstractmethod
    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """What `images` makes the batches of: tensors of fixed shapes, on the device or in pinned memory."""

    @abstractmethod
    def images(self, *inputs: Tensor) -> Tensor:
        """One batch of its inputs; a training step may take this into its own graph."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right kind, made without starting DALI."""


class DaliLoader(Loader):
    """Streams augmented batches of JPEG files through DALI. Made by `open_loader`."""

    kind = "dali"

    def __init__(self, files: ImageFiles, sampler: Sampler, decoder: Decoder, note: str = "") -> None:
        self.files = files
        self.sampler = sampler
        self.decoder = decoder
        self.note = note

    def example(self) -> tuple[Tensor, ...]:
        size = self.decoder.crop_resize.size
        images = torch.rand(self.sampler.share, 3, size, size, device=self.decoder.device)
        return (images.contiguous(memory_format=torch.channels_last),)

    def images(self, *inputs: Tensor) -> Tensor:
        (images,) = inputs
        return images

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return ((images,) for images in _Augmented(self, start).recovered())


class _Augmented(RecoverableStream[Tensor]):
    """The batches of a DALI loader from iteration `start` on, without end."""

    decoder: Decoder

    def __init__(self, loader: DaliLoader, start: int) -> None:
        super().__init__(loader.files, loader.decoder)
        self._sampler, self._start = loader.sampler, start

    def images(self, position: int) -> Iterable[int]:
        return self._sampler.at(self._start + position).indices.tolist()

    def restart(self, position: int, patience: float) -> Iterator[Tensor]:
        from fastae.data.pipeline import DaliPipeline, read_augmented, read_crops

        decoder, paths, start = self.decoder, self.files.paths, self._start + position
        dali = DaliPipeline(decoder.device, self._sampler.share, decoder.threads, decoder.tuning, patience)
        if dali.on_gpu:
            yield from read_augmented(paths, self._sampler.iterate(start), decoder.crop_resize, dali)
        else:
            needed = ([paths[index] for index in params.indices] for params in self._sampler.iterate(start))
            crops = read_crops(needed, decoder.crop_resize, dali)
            for params, squares in zip(self._sampler.iterate(start), crops, strict=False):
                parameters = ParamTensors.of(params)
                pixels = decoder.pixel_ops.resize(squares, parameters.flip)
                yield decoder.pixel_ops.color_jitter(pixels, channel_means(pixels), parameters)


class ResidentLoader(Loader):
    """Gathers batches from a decoded data set and augments them. Made by `open_loader`."""

    kind = "resident"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder, note: str = "") -> None:
        self.store = store
        self.sampler = sampler
        self.decoder = decoder
        self.note = note

    def example(self) -> tuple[Tensor, ...]:
        return next(self.inputs())

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        on_gpu = self.decoder.device.type == "cuda"
        return ((ParamTensors.pack(params, pinned=on_gpu),) for params in self.sampler.iterate(start))

    def images(self, *inputs: Tensor) -> Tensor:
        (words,) = inputs
        return self.decoder.pixel_ops.gather(self.store.pixels, self.store.means, words)


def open_loader(
    source: str | Path | Sequence[str],
    *,
    kind: str = "auto",
    batch_size: int,
    device: str | torch.device,
    seed: int,
    augmentation: Augmentation | None = None,
    crop_resize: CropResize | None = None,
    threads: int | None = None,
    compiled: bool | None = None,
    cache: Path | str | None = "default",
    on_replaced: Callable[[FileFault, str], None] | None = None,
    part: int = 0,
    parts: int = 1,
) -> Loader:
    """A loader over the training images of a folder, or over exactly the files of a list.

    augmentation: ranges of the random colour changes (default: `Augmentation()`).
    crop_resize: crop, size, antialias (default: the largest square, 128 pixels, none).
    threads: CPU threads that decode (default: `default_threads()`).
    compiled: the passes over pixels, by torch.compile (default: where there is a compiler).
    cache: folder for the resident array; None keeps it in memory alone (default: `cache_folder()`).
    on_replaced: called with each file that cannot be decoded, and with the path of its replacement.
    part, parts: yield this one alone of the equal parts of every batch, as data-parallel ranks do.

    Raises FastaeError for a bad folder, fewer images than `batch_size`, a batch that `parts` does not
    divide, a missing DALI, or a resident array that does not fit.
    """
    if kind not in KINDS:
        raise FastaeError(f"--loader {kind!r} is not one of: {', '.join(KINDS)}")
    require_dali()
    device, crop_resize = torch.device(device), crop_resize or CropResize()
    folder = cache_folder() if cache == "default" else Path(cache) if cache else None
    if isinstance(source, str | Path):
        opened = open_folder(source, crop_resize.crop, folder and check_records(folder))
        source, crop_resize = opened.train, replace(crop_resize, crop=crop_resize.crop or opened.side)
    if batch_size > len(source):
        raise FastaeError(f"--batch-size {batch_size} is more than the {len(source)} training images")
    if batch_size % parts:
        raise FastaeError(f"--batch-size {batch_size} cannot be shared equally by {parts} ranks")
    sampler = Sampler(len(source), batch_size, seed, augmentation or Augmentation(), part, parts)
    decoder = open_decoder(crop_resize, device, threads, compiled)
    files = ImageFiles(source, on_replaced)
    note = ""
    if kind == "auto":
        kind, note = _choose_kind(store_bytes(len(source), crop_resize.size), device, folder)
    if kind == "dali":
        return DaliLoader(files, sampler, decoder, note)
    return ResidentLoader(open_store(files, decoder, folder), sampler, decoder, note)


def load_images(
    paths: Sequence[str],
    crop_resize: CropResize,
    device: str | torch.device,
    threads: int | None = None,
    *,
    indices: Sequence[int] | None = None,
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> Tensor:
    """These images, cut out and resized but not augmented: float32 (N, 3, S, S) in [0, 1].

    indices: those to load (default: all); the others may replace one that cannot be decoded.
    on_replaced: called with each such file, and with the path of its replacement.

    Raises NoneLeft if none can be decoded, and FastaeError for a missing DALI.
    """
    require_dali()
    decoder = open_decoder(crop_resize, torch.device(device), threads, compiled=False)
    return torch.cat([to_batch(pixels) for pixels in decoder.decode(ImageFiles(paths, on_replaced), indices)])


def open_decoder(
    crop_resize: CropResize, device: torch.device, threads: int | None, compiled: bool | None
) -> Decoder:
    """How images are decoded on this device; the arguments are `open_loader`'s."""
    compiled = can_compile() if compiled is None else compiled
    return Decoder(crop_resize, PixelOps(crop_resize, compiled), device, threads or default_threads())


def default_threads() -> int:
    """One a core that this process may use, at most 8: beyond that decoding 178x218 gains little."""
    return min(8, len(os.sched_getaffinity(0)))


def require_dali() -> None:
    """Raises FastaeError unless exactly one build of DALI is installed."""
    installed = [name for name in DALI_BUILDS if version(name)]
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


def _choose_kind(needed: int, device: torch.device, cache: Path | None) -> tuple[str, str]:
    """resident or dali, and why, in words."""
    half = free_bytes(device) // 2
    sizes = f"{needed / 1e9:.2f} GB of images, {half / 1e9:.1f} GB is half of the free memory"
    if needed > half:
        return "dali", sizes
    if cache is not None:
        place = next(folder for folder in (cache, *cache.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            return "dali", f"{needed / 1e9:.2f} GB of images, {free / 1e9:.2f} GB free in {cache}"
    return "resident", sizes
