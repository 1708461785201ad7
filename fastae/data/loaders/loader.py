"""Batches from JPEG files: `open_loader(folder)`, or `build_loader` for files that are checked already.

    dali        Every epoch, DALI reads and decodes the files. On a GPU, DALI's graph also augments the
                images; on a CPU, `fastae.data.loaders.pixel_ops` does.
    resident    Every file is decoded once, into one array on the training device. Each step gathers a batch
                from the array and augments it.
    host        The array is in host memory, and a thread gathers batches and uploads them to the GPU. On a
                CPU this is `resident`.
    auto        resident if the array fits in half of the device's free memory (in a share of 1/(n + 1) for n
                runs at once), else host if it fits in half of the host's, else dali.

Every batch is a function of (seed, iteration). So the iteration number is a loader's whole state, and all
loaders yield the same batches (resident and host up to the rounding of their stored pixels).
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.folder import check_list, count_faults, open_folder
from fastae.data.files.jpeg import FileFault, inspect
from fastae.data.files.recovery import ImageFiles, recovered
from fastae.data.loaders.crop_resize import SIZE, CropResize
from fastae.data.loaders.decode import Decoder, open_decoder
from fastae.data.loaders.host import gather, upload_batches
from fastae.data.loaders.pixel_ops import pack_params, to_batch
from fastae.data.loaders.resident import Store, is_stored, open_store, store_bytes
from fastae.data.loaders.sampler import BatchParams, Sampler
from fastae.data.loaders.tuning import DEFAULT, Tuning
from fastae.device.choose import find_device
from fastae.device.memory import free_memory
from fastae.errors import SettingError
from fastae.experiment.augment import NO_COLORS, Augmentation
from fastae.utils.arguments import BATCH_SIZE, SEED, Range, require_choice, require_int, require_type
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import counted, log, size
from fastae.utils.files import is_writable, nearest_existing
from fastae.utils.paths import expand_home, texts, user_path
from fastae.utils.sample import evenly_spaced

LoaderKind = Literal["auto", "dali", "host", "resident"]
Split = Literal["train", "held_out", "all"]
PathLike = str | os.PathLike[str]
CPU = torch.device("cpu")
ITERATION = Range(0, 2**63 - 1)

GROUP_BYTES = 1 << 29
"""The maximum bytes of the images that DALI decodes at once, unless one training batch has more.

DALI holds two or three groups of this size.
"""

SIZED = 256
"""The number of files whose headers are read to find the size of the images."""


class Loader(ABC):
    """Yields batches float32 (N, 3, S, S) in [0, 1], channels-last, on its device. Made by `open_loader`.

    `len(loader)` is the number of batches per epoch. `iter(loader)` yields the batches of one epoch, and the
    next `iter(loader)` those of the next epoch.
    """

    kind: LoaderKind

    note: str = ""
    """Why `auto` chose this kind, in words."""

    paths: Sequence[str] = ()
    """The file of each image by index. A bad file is replaced by that of another image."""

    skipped: Sequence[FileFault] = ()
    """The files that cannot be used. Each has a `path` and a `fault`."""

    _epochs = 0

    def __init__(self, sampler: Sampler, decoder: Decoder) -> None:
        self.sampler = sampler
        self.decoder = decoder

    def __repr__(self) -> str:
        return (
            f"Loader(kind={self.kind!r}, images={self.sampler.count}, batch_size={self.sampler.batch_size}, "
            f"image_size={self.decoder.crop_resize.size}, device={str(self.device)!r})"
        )

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.decoder.device

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        start = len(self) * self._epochs
        self._epochs += 1
        return itertools.islice(self.batches(start), len(self))

    def reseeded(self, seed: int) -> Self:
        """Returns a loader of the same images in another order. It shares the files or stored pixels."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, seed=seed)
        return other

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the batches of iterations start, start + 1, ..., without end.

        Raises SettingError if `start` is not a valid iteration number.
        """
        start = require_int(start, "start", ITERATION)
        return itertools.starmap(self.make_batch, self.inputs(start))

    @abstractmethod
    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yields the inputs from which `make_batch` makes a batch, from iteration `start` on, without end.

        They are tensors of fixed shapes on the device or in pinned memory.
        """

    @abstractmethod
    def make_batch(self, *inputs: Tensor) -> Tensor:
        """Makes a batch from its inputs. A training step may compile and capture this as a part of itself."""

    def example(self) -> tuple[Tensor, ...]:
        """Returns inputs of the right shapes, without DALI or a thread: a step is captured before that."""
        return next(self.inputs())

    def _all_params(self, start: int = 0) -> Iterator[Tensor]:
        """Yields the packed parameters of the batches of iterations start, start + 1, ..., without end."""
        for params in map(self.sampler.at, itertools.count(start)):
            yield pack_params(params, pinned=self.decoder.on_gpu)


class DaliLoader(Loader):
    """Streams augmented batches of JPEG files through DALI.

    On a GPU, DALI decodes the batches of several iterations as one group. A group starts at a multiple of its
    length. So wherever a run starts, an image has the same index in its group, and the same one of the GPU's
    two decoders decodes it.
    """

    kind = "dali"

    def __init__(self, files: ImageFiles, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.files = files

    def example(self) -> tuple[Tensor, ...]:
        size = self.decoder.crop_resize.size
        images = torch.rand(self.sampler.share, 3, size, size, device=self.decoder.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images, next(self._all_params())) if self.colors_in_step else (images,)

    @property
    def colors_in_step(self) -> bool:
        return self.decoder.on_gpu and self.decoder.tuning.colors_in_step

    @cached_property
    def group_length(self) -> int:
        """The number of iterations whose images are decoded at once: on a GPU as many as fit, else 1.

        It follows from a sample of the files that the run began with, so that a resumed run has the same
        groups.
        """
        if not self.decoder.on_gpu:
            return 1
        sample = map(inspect, evenly_spaced(self.files.own, SIZED))
        largest = max(3 * found.width * found.height for found in sample)
        images = min(self.decoder.tuning.decode_batch, GROUP_BYTES // max(1, largest))
        return max(1, images // self.sampler.share)

    def make_batch(self, *inputs: Tensor) -> Tensor:
        images, *words = inputs
        return self.decoder.pixel_ops.color(images, *words) if words else images

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        batches = recovered(
            self.files,
            self.decoder.faults,
            restart=lambda position, patience: self._augmented(start + position, patience),
            indices_at=lambda position: self._group(start + position).indices.tolist(),
        )
        return zip(batches, self._all_params(start), strict=False) if self.colors_in_step else zip(batches)

    def _group(self, iteration: int) -> BatchParams:
        """Returns the batches of the group that contains this iteration, concatenated."""
        first = iteration - iteration % self.group_length
        batches = map(self.sampler.at, range(first, first + self.group_length))
        return BatchParams(*map(np.concatenate, zip(*batches, strict=True)))

    def _augmented(self, first: int, patience: float) -> Iterator[Tensor]:
        """Yields the batches of iterations first, first + 1, ... from a new pipeline."""
        from fastae.data.loaders.pipeline import DaliPipeline, read_augmented, read_crops

        decoder, sampler, paths, length = self.decoder, self.sampler, self.files.paths, self.group_length
        groups = map(self._group, itertools.count(first, length))
        dali = DaliPipeline(
            decoder.crop_resize,
            decoder.device,
            sampler.share * length,
            tuning=decoder.tuning,
            patience=patience,
        )
        if decoder.on_gpu:
            before = first % length
            sizes = map(sampler.size, itertools.count(first - before))
            for images in read_augmented(paths, groups, dali):
                batches = images.split(list(itertools.islice(sizes, length)))
                yield from batches[before:]
                before = 0
        else:
            needed = ([paths[index] for index in params.indices] for params in groups)
            for crops, words in zip(read_crops(needed, dali), self._all_params(first), strict=False):
                yield decoder.pixel_ops.augment_crops(crops, words)


class ResidentLoader(Loader):
    """Gathers batches from decoded images on the device, and augments them."""

    kind = "resident"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return zip(self._all_params(start))

    def make_batch(self, *inputs: Tensor) -> Tensor:
        (words,) = inputs
        return self.decoder.pixel_ops.gather(self.store.pixels, self.store.means, words)


class HostLoader(Loader):
    """Gathers batches from decoded images in host memory, and uploads them to a GPU, which augments them."""

    kind = "host"

    def __init__(self, store: Store, sampler: Sampler, decoder: Decoder) -> None:
        super().__init__(sampler, decoder)
        self.store = store

    def example(self) -> tuple[Tensor, ...]:
        return tuple(value.to(self.device) for value in gather(self.store, self.sampler.at(0)))

    def inputs(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        return upload_batches(self.store, self.sampler, start, device=self.device)

    def make_batch(self, *inputs: Tensor) -> Tensor:
        return self.decoder.pixel_ops.augment(*inputs)


def open_loader(
    source: PathLike | Iterable[PathLike],
    batch_size: int = 64,
    *,
    split: Split = "train",
    augment: bool | Augmentation = True,
    flip: bool | None = None,
    shuffle: bool | None = None,
    image_size: int = 128,
    crop: int | None = None,
    antialias: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    kind: LoaderKind = "auto",
    cache: bool | PathLike = True,
    tuning: Tuning = DEFAULT,
    shard: tuple[int, int] = (0, 1),
    on_replaced: Callable[[FileFault, str], None] | None = None,
    at_once: int = 1,
) -> Loader:
    """Makes a loader of JPEG files. Unusable files are skipped, logged, and listed in `loader.skipped`.

    Args:
        source: a folder of JPEGs, nested or flat, or the paths of files, which keep their order.
        batch_size: the number of images per batch.
        split: the part of a folder: the images to train on, the held-out images (by CelebA's partition file,
            else the last 5 % by name), or all. A list of files has only "all" and "train", which are equal.
        augment: whether to change colors at random, or the ranges of the changes. If False, `flip` and
            `shuffle` are off by default.
        flip: whether to flip images left-right at random, with a probability of 1/2. Default: true unless
            `augment` is False.
        shuffle: whether to visit the images in a new order every epoch, in batches of the same size. If
            False, the images come in the order of `loader.paths`, each once per epoch, and the last batch may
            be smaller. Default: true unless `augment` is False.
        image_size: the side of the images in pixels.
        crop: the side of the central square that is cut out first, in pixels. Default: the largest.
        antialias: whether to antialias when shrinking (torchvision does; TensorFlow and the article do not).
        device: the device of the batches. Default: CUDA's current device if there is one, else the CPU.
        seed: the seed of order, flips and colors.
        kind: how batches are made; see the module `fastae.data.loaders.loader`.
        cache: whether to keep decoded images in the cache folder, or another folder for them. If False, they
            are kept in memory only.
        tuning: the number of threads and other settings that change only the speed.
        shard: (rank, world size), for DDP. The loader yields part `rank` of `world size` equal parts of every
            batch.
        on_replaced: is called with each file that cannot be decoded and the path of its replacement.
        at_once: the number of runs that will train on the device, for the choice of `auto`.

    Raises:
        FastaeError: an argument is wrong, no image is usable, DALI is not installed, or the images do not fit
            into memory.
    """
    batch_size = require_int(batch_size, "batch_size", BATCH_SIZE)
    seed = require_int(seed, "seed", SEED)
    image_size = require_int(image_size, "image_size", SIZE)
    require_choice(split, "split", get_args(Split))
    require_choice(kind, "kind", get_args(LoaderKind))
    require_type(augment, "augment", bool, Augmentation)
    require_type(flip, "flip", bool, type(None))
    require_type(shuffle, "shuffle", bool, type(None))
    require_type(cache, "cache", bool, str, os.PathLike)
    require_type(tuning, "tuning", Tuning)
    rank, world_size = _require_shard(shard)
    device, crop_resize = find_device(device), CropResize(crop, image_size, antialias)
    folder = (cache_folder() if cache is True else expand_home(Path(cache))) if cache else None
    paths, skipped, side = _find_files(source, split, crop, cache=folder)
    if skipped:
        log(f"skipped   {count_faults(skipped)}: loader.skipped lists them", "yellow")
    colors = augment if isinstance(augment, Augmentation) else Augmentation() if augment else NO_COLORS
    flip = augment is not False if flip is None else flip
    shuffle = augment is not False if shuffle is None else shuffle
    sampler = Sampler(
        count=len(paths),
        batch_size=batch_size,
        seed=seed,
        augmentation=colors,
        part=rank,
        parts=world_size,
        flip=flip,
        shuffle=shuffle,
    )
    decoder = open_decoder(replace(crop_resize, crop=crop or side), device, tuning)
    files = ImageFiles(paths, on_replaced)
    loader = build_loader(files, sampler, decoder, kind=kind, cache=folder, at_once=at_once)
    loader.skipped = skipped
    return loader


def build_loader(
    files: ImageFiles,
    sampler: Sampler,
    decoder: Decoder,
    kind: LoaderKind = "auto",
    cache: Path | None = None,
    at_once: int = 1,
) -> Loader:
    """Makes a loader of files that have passed the quick check.

    Args:
        files: the images' files.
        sampler: the images of each batch.
        decoder: decodes the files.
        kind: how batches are made.
        cache: the folder for the decoded images. With None they are kept in memory only.
        at_once: the number of runs that will train on the device; each needs some of its memory.
            `auto` takes it into account.

    Raises:
        SettingError: the batch size does not suit the number of images or ranks.
        FastaeError: as for `open_store`.
    """
    count, batch_size = sampler.count, sampler.batch_size
    if sampler.shuffle and batch_size > count:
        images = counted(count, "image")
        raise SettingError(
            "batch_size", f"{batch_size} is more than the {images} of the split: use at most {count}"
        )
    if batch_size % sampler.parts:
        raise SettingError("batch_size", f"{batch_size} cannot be shared equally by {sampler.parts} ranks")
    if sampler.parts > 1 and not sampler.shuffle:
        raise SettingError("shard", "needs shuffled batches: shuffle, or give each rank its own files")
    note = ""
    if kind == "auto":
        kind, note = _choose_kind(files, decoder, cache, at_once=at_once)
    loader: Loader
    if kind == "dali":
        loader = DaliLoader(files, sampler, decoder)
    elif kind == "host" and decoder.on_gpu:
        loader = HostLoader(open_store(files, decoder, cache, device=CPU), sampler, decoder)
    else:
        loader = ResidentLoader(open_store(files, decoder, cache, device=decoder.device), sampler, decoder)
    loader.note, loader.paths = note, files.paths
    return loader


def _find_files(
    source: PathLike | Iterable[PathLike], split: Split, crop: int | None, cache: Path | None
) -> tuple[list[str], list[FileFault], int | None]:
    """Returns the usable files, the skipped files, and the images' shorter side if it is the same for all."""
    if isinstance(source, str | os.PathLike):
        folder = user_path(os.fspath(source), "source")
        opened = open_folder(folder, crop, cache and check_records(cache))
        parts = {"train": opened.train, "held_out": opened.held_out}
        paths = parts[split] if split in parts else sorted([*opened.train, *opened.held_out])
        return paths, opened.skipped, opened.side
    if split == "held_out":
        raise SettingError("split", "'held_out' needs a folder: a list of files is not divided")
    require_type(source, "source", str, os.PathLike, Iterable)
    paths = texts(source, "source")
    checked = check_list(paths, crop)
    return [path for path in paths if path in checked.sizes], checked.unusable, checked.side


def _require_shard(shard: tuple[int, int]) -> tuple[int, int]:
    try:
        rank, world_size = shard
    except (TypeError, ValueError):
        raise SettingError("shard", f"must be (rank, world size), not {shard!r:.60}") from None
    world_size = require_int(world_size, "shard", Range(1, 1_000_000))
    return require_int(rank, "shard", Range(0, world_size - 1)), world_size


def load_images(
    paths: Iterable[PathLike],
    crop_resize: CropResize = CropResize(),  # noqa: B008 (it is frozen)
    device: str | torch.device | None = None,
    tuning: Tuning = DEFAULT,
    *,
    indices: Sequence[int] | None = None,
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> Tensor:
    """Loads images without augmentation.

    Args:
        paths: files that can be decoded. Use `open_loader` for folders, and for files that are not checked.
        crop_resize: the crop of each image, and the size of the result.
        device: the device that decodes and keeps the images. Default: CUDA's current device, else the CPU.
        tuning: the number of threads and other settings that change only the speed.
        indices: the images to load. Default: all. Any image may replace one that cannot be decoded.
        on_replaced: is called with each file that cannot be decoded and the path of its replacement.

    Returns:
        float32 (N, 3, S, S) in [0, 1], channels-last.

    Raises:
        NoneLeft: none of the images can be decoded.
        FastaeError: an argument is wrong, or DALI is not installed.
    """
    require_type(crop_resize, "crop_resize", CropResize)
    files = ImageFiles(
        texts([paths] if isinstance(paths, str | os.PathLike) else paths, "paths"), on_replaced
    )
    decoder = open_decoder(crop_resize, find_device(device), replace(tuning, compiled=False))
    return torch.cat([to_batch(pixels) for pixels in decoder.decode(files, indices)])


def _choose_kind(
    files: ImageFiles, decoder: Decoder, cache: Path | None, at_once: int
) -> tuple[LoaderKind, str]:
    """Chooses resident, host or dali; returns the choice and its reason, in words.

    The images may take the same share of the device's free memory as each run.
    """
    needed = store_bytes(len(files), decoder.crop_resize.size)
    candidates: list[tuple[LoaderKind, torch.device, int]] = [("resident", decoder.device, at_once + 1)]
    if decoder.on_gpu:
        candidates.append(("host", CPU, 2))
    for kind, device, parts in candidates:
        allowed = free_memory(device) / parts
        share = "half" if parts == 2 else f"1/{parts}"
        note = f"{size(needed)} of images, {size(allowed)} is {share} of the free memory"
        if needed <= allowed:
            obstacle = _obstacle(files, decoder, cache, needed=needed) if cache else None
            return ("dali", obstacle) if obstacle else (kind, note)
    return "dali", note


def _obstacle(files: ImageFiles, decoder: Decoder, cache: Path, needed: int) -> str | None:
    """Returns why the cache cannot store this many bytes of images, in words; None if it can."""
    if not is_writable(cache):
        return f"the cache {str(cache)!r} is not writable"
    free = shutil.disk_usage(nearest_existing(cache)).free
    if needed > free and not is_stored(files, decoder, cache):
        return f"{size(needed)} of images, {size(free)} free in {cache}"
    return None
