"""Batches for training, from JPEG files: `open_loader(...).batches(start)`.

    dali        every epoch the files are read and decoded by DALI, and augmented: on a GPU all of it in
                DALI's graph; on a CPU the pixels' part in `fastae.data.pixel_ops`
    resident    every file is decoded once, into one array on the training device; each step gathers a
                batch from it and augments that
    host        the same array in host memory; a thread gathers and uploads the batches of a GPU. On a CPU
                this is `resident`
    auto        resident if that fits in half of the device's free memory, else host if it fits in half of
                the host's, else dali

Every batch is a function of (seed, iteration), so the iteration number is a loader's whole state, and
all loaders give the same batches (resident and host: to the rounding of their stored pixels).
"""

from __future__ import annotations

import copy
import itertools
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from fastae.augment import Augmentation
from fastae.data.crop_resize import CropResize
from fastae.data.decode import Decoder, open_decoder
from fastae.data.folder import open_folder
from fastae.data.host import CudaUploads, tensors, upload_batches
from fastae.data.jpeg import FileFault
from fastae.data.pixel_ops import ParamTensors, to_batch
from fastae.data.recovery import ImageFiles, RecoverableStream
from fastae.data.resident import Store, is_stored, open_store, store_bytes
from fastae.data.sampler import BatchParams, Sampler
from fastae.data.tuning import DEFAULT, Tuning
from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import size
from fastae.utils.device import free_memory

LoaderKind = Literal["auto", "dali", "host", "resident"]
CPU = torch.device("cpu")


class Loader(ABC):
    """Yields batches, float32 (N, 3, S, S), channels-last, in [0, 1], on its device. Made by `open_loader`.

    note: why `auto` chose this kind, for people. `len(loader)`: batches per epoch. `iter(loader)`: those of
    one epoch, and the next time of the next.
    """

    kind: LoaderKind
    note = ""
    _epochs = 0

    def __init__(self, sampler: Sampler, decoder: Decoder) -> None:
        self.sampler = sampler
        self.decoder = decoder

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        start = len(self) * self._epochs
        self._epochs += 1
        return itertools.islice(self.batches(start), len(self))

    def reseeded(self, seed: int) -> Self:
        """The same images in another order, over the same files or pixels."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, seed=seed)
        return other

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """The batches of iterations start, start + 1, ..., without end."""
        return itertools.starmap(self.images, self.inputs(start))

    @abstractmethod
    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """What `images` makes the batches of: tensors of fixed shapes, on the device or in pinned memory.

        They may be overwritten once the next ones are asked for.
        """

    @abstractmethod
    def images(self, *inputs: Tensor) -> Tensor:
        """One batch of its inputs; a training step may take this into its own graph."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, made without starting DALI or a thread."""

    def _params(self, iteration: int = 0) -> Tensor:
        return ParamTensors.pack(self.sampler.at(iteration), pinned=self.decoder.on_gpu)


class DaliLoader(Loader):
    """Streams augmented batches of JPEG files through DALI."""

    kind = "dali"

    def __init__(self, files: ImageFiles, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.files = files

    def example(self) -> tuple[Tensor, ...]:
        size = self.decoder.crop_resize.size
        images = torch.rand(self.sampler.share, 3, size, size, device=self.decoder.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images, self._params()) if self.colors_in_step else (images,)

    @property
    def colors_in_step(self) -> bool:
        return self.decoder.on_gpu and self.decoder.tuning.colors_in_step

    def images(self, *inputs: Tensor) -> Tensor:
        images, *words = inputs
        return self.decoder.pixel_ops.color(images, *words) if words else images

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        batches = _Augmented(self, start).recovered()
        if not self.colors_in_step:
            return ((images,) for images in batches)
        return ((images, self._params(i)) for i, images in enumerate(batches, start))


class _Augmented(RecoverableStream[Tensor]):
    """The batches of a DALI loader from iteration `start` on, without end.

    On a GPU, DALI decodes those of several iterations at once. Such a group begins at a multiple of its
    length, so that an image has the same place in it, and the same of two decoders, wherever a run starts.
    """

    decoder: Decoder

    def __init__(self, loader: DaliLoader, start: int) -> None:
        super().__init__(loader.files, loader.decoder)
        self._sampler, self._start = loader.sampler, start
        together = loader.decoder.tuning.decode_batch // loader.sampler.share
        self._length = max(1, together) if loader.decoder.on_gpu else 1

    def images(self, position: int) -> Iterable[int]:
        return self._group(self._start + position).indices.tolist()

    def _group(self, iteration: int) -> BatchParams:
        first = iteration - iteration % self._length
        return BatchParams.joined([self._sampler.at(first + i) for i in range(self._length)])

    def restart(self, position: int, patience: float) -> Iterator[Tensor]:
        from fastae.data.pipeline import DaliPipeline, read_augmented, read_crops

        decoder, paths, share = self.decoder, self.files.paths, self._sampler.share
        first = self._start + position
        groups = (self._group(iteration) for iteration in itertools.count(first, self._length))
        dali = DaliPipeline(
            decoder.crop_resize, decoder.device, share * self._length, decoder.tuning, patience
        )
        if dali.on_gpu:
            before = first % self._length
            batches = (
                batch for images in read_augmented(paths, groups, dali) for batch in images.split(share)
            )
            yield from itertools.islice(batches, before, None)
        else:
            needed = ([paths[index] for index in params.indices] for params in groups)
            for params, crops in zip(self._sampler.iterate(first), read_crops(needed, dali), strict=False):
                yield decoder.pixel_ops.augment_crops(crops, ParamTensors.of(params))


class ResidentLoader(Loader):
    """Gathers batches from a decoded data set on the device and augments them."""

    kind = "resident"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def example(self) -> tuple[Tensor, ...]:
        return (self._params(),)

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return ((self._params(iteration),) for iteration in itertools.count(start))

    def images(self, *inputs: Tensor) -> Tensor:
        (words,) = inputs
        return self.decoder.pixel_ops.gather(self.store.pixels, self.store.means, words)


class HostLoader(Loader):
    """Gathers batches from a decoded data set in host memory for a GPU, which augments them."""

    kind = "host"

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        decoder: Decoder,
        uploads: Callable[[torch.device], CudaUploads] = CudaUploads,
    ) -> None:
        super().__init__(sampler, decoder)
        self.store = store
        self._uploads = uploads

    def example(self) -> tuple[Tensor, ...]:
        return tuple(value.to(self.decoder.device) for value in tensors(self.store, self.sampler.at(0)))

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return upload_batches(self.store, self.sampler, start, self._uploads(self.decoder.device))

    def images(self, *inputs: Tensor) -> Tensor:
        return self.decoder.pixel_ops.augment(*inputs)


def open_loader(
    source: str | Path | Sequence[str],
    *,
    batch_size: int,
    device: str | torch.device,
    seed: int,
    kind: LoaderKind = "auto",
    augmentation: Augmentation | None = None,
    crop_resize: CropResize | None = None,
    tuning: Tuning = DEFAULT,
    cache: Path | str | bool = True,
    shard: tuple[int, int] = (0, 1),
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> Loader:
    """A loader over the training images of a folder, or over exactly the files of a list.

    augmentation: ranges of the random color changes (default: `Augmentation()`).
    crop_resize: crop, size, antialias (default: the largest square, 128 pixels, none).
    tuning: threads, compiling and what else changes speed alone.
    cache: folder for the decoded images (default: `cache_folder()`); False keeps them in memory alone.
    shard: (rank, world size): yield this one of the equal parts of every batch, as data-parallel ranks do.
    on_replaced: called with each file that cannot be decoded, and with the path of its replacement.

    Raises FastaeError for a bad folder, fewer images than `batch_size`, a batch that the ranks cannot share
    equally, a missing DALI, or images that do not fit into memory.
    """
    if kind not in get_args(LoaderKind):
        raise FastaeError(f"--loader {kind!r} is not one of: {', '.join(get_args(LoaderKind))}")
    device, crop_resize = torch.device(device), crop_resize or CropResize()
    folder = cache_folder() if cache is True else Path(cache) if cache else None
    if isinstance(source, str | Path):
        opened = open_folder(source, crop_resize.crop, folder and check_records(folder))
        source, crop_resize = opened.train, replace(crop_resize, crop=crop_resize.crop or opened.side)
    if batch_size > len(source):
        raise FastaeError(f"--batch-size {batch_size} is more than the {len(source)} training images")
    rank, world_size = shard
    if batch_size % world_size:
        raise FastaeError(f"--batch-size {batch_size} cannot be shared equally by {world_size} ranks")
    sampler = Sampler(len(source), batch_size, seed, augmentation or Augmentation(), rank, world_size)
    decoder = open_decoder(crop_resize, device, tuning)
    files, note = ImageFiles(source, on_replaced), ""
    if kind == "auto":
        kind, note = _choose_kind(files, decoder, folder)
    loader: Loader
    if kind == "dali":
        loader = DaliLoader(files, sampler, decoder)
    elif kind == "host" and device.type != "cpu":
        loader = HostLoader(open_store(files, decoder, folder, CPU), sampler, decoder)
    else:
        loader = ResidentLoader(open_store(files, decoder, folder, decoder.device), sampler, decoder)
    loader.note = note
    return loader


def load_images(
    paths: Sequence[str],
    crop_resize: CropResize,
    device: str | torch.device,
    tuning: Tuning = DEFAULT,
    *,
    indices: Sequence[int] | None = None,
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> Tensor:
    """These images, cut out and resized but not augmented: float32 (N, 3, S, S) in [0, 1].

    indices: those to load (default: all); the others may replace one that cannot be decoded.
    on_replaced: called with each such file, and with the path of its replacement.

    Raises NoneLeft if none can be decoded, and FastaeError for a missing DALI.
    """
    decoder = open_decoder(crop_resize, torch.device(device), replace(tuning, compiled=False))
    return torch.cat([to_batch(pixels) for pixels in decoder.decode(ImageFiles(paths, on_replaced), indices)])


def _choose_kind(files: ImageFiles, decoder: Decoder, cache: Path | None) -> tuple[LoaderKind, str]:
    """resident, host or dali, and why, in words."""
    needed = store_bytes(len(files), decoder.crop_resize.size)
    places: dict[LoaderKind, torch.device] = {"resident": decoder.device}
    if decoder.on_gpu:
        places["host"] = CPU
    halves = {kind: free_memory(place) // 2 for kind, place in places.items()}
    fitting: list[LoaderKind] = [kind for kind, half in halves.items() if needed <= half]
    kind = fitting[0] if fitting else "dali"
    half = halves.get(kind, max(halves.values()))
    note = f"{size(needed)} of images, {size(half)} is half of the free memory"
    if kind != "dali" and cache is not None:
        existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if needed > free and not is_stored(files, decoder, cache):
            return "dali", f"{size(needed)} of images, {size(free)} free in {cache}"
    return kind, note
