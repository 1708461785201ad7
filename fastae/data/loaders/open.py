"""Opens a loader of JPEG and PNG files, or loads images: the functions that a user's program calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.check import Check
from fastae.data.files.faults import FileFault, count_faults
from fastae.data.files.folder import (
    ImageFolder,
    check_list,
    check_loadable,
    open_folder,
    require_usable,
)
from fastae.data.files.recovery import ImageFiles, NoneLeft, log_replaced
from fastae.data.loaders.choose import build_source
from fastae.data.loaders.crop_resize import CropResize, require_size
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.loader import Loader
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.pixel_ops import to_batch
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.targets import Found, find_targets
from fastae.data.loaders.tuning import DEFAULT, Tuning
from fastae.device.choose import find_device
from fastae.errors import SettingError
from fastae.experiment.augment import NO_COLORS, Augmentation
from fastae.utils.arguments import (
    BATCH_SIZE,
    SEED,
    LoaderKind,
    Range,
    require_choice,
    require_int,
    require_type,
)
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import log
from fastae.utils.paths import texts, user_folder, user_path
from fastae.utils.ranks import MOST, current_rank
from fastae.utils.sample import evenly_spaced

Split = Literal["train", "held_out", "all"]
PathLike = str | os.PathLike[str]
Targets = Literal["folders"] | Mapping[Any, Any] | Sequence[Any] | np.ndarray | Tensor


def open_loader(  # noqa: PLR0913 -- keyword arguments of a public function
    source: PathLike | Iterable[PathLike],
    batch_size: int = 64,
    *,
    split: Split = "all",
    targets: Targets | None = None,
    augment: bool | Augmentation = True,
    flip: bool | None = None,
    shuffle: bool | None = None,
    image_size: int | tuple[int, int] = 128,
    crop: int | None = None,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    device: str | torch.device | None = None,
    seed: int = 0,
    kind: LoaderKind = "auto",
    cache: bool | PathLike = True,
    tuning: Tuning = DEFAULT,
    shard: tuple[int, int] | Literal["auto"] | None = None,
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> Loader:
    """Makes a loader of JPEG and PNG files. Unusable files are skipped, logged and listed in `skipped`.

    Args:
        source: a folder of JPEGs and PNGs, nested or flat, or the paths of files, which keep their order.
        batch_size: the number of images in a batch of all ranks together. Each rank yields its share.
        split: the part of a folder: "all", or the images to train on or the held-out ones, divided as
            `fastae train` divides them: by CelebA's partition file, else the last 5 % of each folder by name
            are held out. A list of files is not divided, and has only "all".
        targets: a value for each image, which batches then contain. "folders": the number of the topmost
            folder in `loader.classes`, the sorted names, int64. A mapping from file name, or path below the
            folder, to a number or array. For a list of files, also a sequence or array with one value per
            file. The dtype is that of the array, which NumPy makes of other values: int64 of integers. A
            replaced file brings the target of its replacement.
        augment: whether to change colors at random, or the ranges of the changes. If False, `flip` and
            `shuffle` are off by default.
        flip: whether to flip images left-right at random, with a probability of 1/2. Default: true unless
            `augment` is False.
        shuffle: whether to visit the images in a new order every epoch, in batches of the same size. If
            False, the images come in the order of `loader.paths`, each once per epoch, and the last batch may
            be smaller. Default: true unless `augment` is False.
        image_size: the side of the images in pixels, or (height, width): then the largest central region of
            this ratio is used.
        crop: the side of a central square that is cut out first, in pixels. Default: the largest square, or
            with (height, width) the whole image.
        antialias: whether to antialias when shrinking (torchvision does; TensorFlow and the article do not).
        dtype: torch.float32, bfloat16, float16, or uint8 for values rounded to integers of 0 to 255.
        mean: is subtracted from images in [0, 1]: one number, or one per channel. With 0.5, and `std` too,
            the images are in [-1, 1]. It and `std` are not for uint8.
        std: divides the difference: one number, or one per channel.
        device: the device of the batches. Default: CUDA's current device if there is one, else the CPU.
        seed: the seed of order, flips and colors.
        kind: how batches are made; see the module `fastae.data.loaders.choose`.
        cache: whether to keep decoded images in the cache folder, or another folder for them. If False, they
            are kept in memory only.
        tuning: the number of threads and other settings that change only the speed.
        shard: (rank, world size): the loader yields part `rank` of the `world size` equal parts of every
            batch. "auto" takes both from torch.distributed if it is initialised, else from torchrun. Without
            shuffling, each image comes once on one of the ranks: the parts of an epoch's last batch may
            differ by one image, and so may `len(loader)` if that batch has fewer images than ranks. Default:
            (0, 1), with a warning if several ranks run.
        on_replaced: is called with each file that cannot be decoded and the path of its replacement.

    Raises:
        FastaeError: an argument is wrong, no image is usable, DALI is not installed, or the images do not fit
            into memory.
    """
    require_choice(split, "split", get_args(Split))
    require_choice(kind, "kind", get_args(LoaderKind))
    require_type(augment, "augment", bool, Augmentation)
    require_type(flip, "flip", bool, type(None))
    require_type(shuffle, "shuffle", bool, type(None))
    require_type(cache, "cache", bool, str, os.PathLike)
    require_type(tuning, "tuning", Tuning)
    crop_resize = CropResize(crop, require_size(image_size, "image_size"), antialias)
    device, output = find_device(device), OutputFormat(dtype, mean, std)
    ranges = Augmentation() if augment else NO_COLORS
    rank, world_size = _require_shard(shard)
    sampler = Sampler(
        count=0,  # until the files are found
        batch_size=require_int(batch_size, "batch_size", BATCH_SIZE),
        seed=require_int(seed, "seed", SEED),
        augmentation=augment if isinstance(augment, Augmentation) else ranges,
        part=rank,
        parts=world_size,
        flip=augment is not False if flip is None else flip,
        shuffle=augment is not False if shuffle is None else shuffle,
    )
    folder = (cache_folder() if cache is True else user_folder(cache, "cache")) if cache else None
    found, checked = _find_files(source, split, crop, cache=folder)
    if skipped := checked.unusable:
        log(f"skipped   {count_faults(skipped)}: loader.skipped lists them", "yellow")
    values, classes = (None, []) if targets is None else find_targets(targets, found)
    if crop_resize.is_square:
        crop_resize = replace(crop_resize, crop=crop or checked.side)
    decoder = open_decoder(crop_resize, device, tuning, output)
    files = ImageFiles(found.paths, on_replaced)
    sampler = replace(sampler, count=len(files))
    batches = build_source(files, sampler, decoder, kind=kind, cache=folder)
    return Loader(batches, files, skipped, values, classes=classes)


def _require_shard(shard: Any) -> tuple[int, int]:
    """Returns (rank, world size)."""
    if shard is None:
        _, number = current_rank()
        if number > 1:
            remedy = "pass shard='auto' to divide each batch among them, or shard=(0, 1) if this is intended"
            log(f"warning   each of the {number} ranks loads all images: {remedy}", "yellow")
        return 0, 1
    if shard == "auto":
        shard = current_rank()
        if shard[0] is None:
            raise SettingError(
                "shard", "'auto' finds no rank: initialise torch.distributed before open_loader"
            )
    try:
        rank, world_size = shard
    except (TypeError, ValueError):
        raise SettingError("shard", f"must be 'auto' or (rank, world size), not {shard!r:.60}") from None
    world_size = require_int(world_size, "shard", Range(1, MOST))
    return require_int(rank, "shard", Range(0, world_size - 1)), world_size


def _find_files(
    source: PathLike | Iterable[PathLike], split: Split, crop: int | None, cache: Path | None
) -> tuple[Found, Check]:
    """Returns the files of a split, and the check of all files."""
    if not isinstance(source, str | os.PathLike):
        require_type(source, "source", Iterable)
        if split != "all":
            raise SettingError("split", f"{split!r} needs a folder: a list of files is not divided")
        listed = texts(source, "source")
        checked = check_list(listed, crop)
        return Found([path for path in listed if path in checked.sizes], listed, root=None), checked
    root, records = user_path(os.fspath(source), "source"), cache and check_records(cache)
    if split == "all":
        checked = check_loadable(root, crop, records)
        require_usable(root, checked, least=1)
        paths = checked.usable
    else:
        folder = open_folder(root, crop, records)
        log(f"images    {folder.division}")
        checked, paths = folder.checked, folder.train if split == "train" else folder.held_out
    return Found(paths, [*checked.sizes, *(file.path for file in checked.unusable)], root), checked


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
        on_replaced: is called with each file that cannot be decoded, or is smaller than the crop, and the
            path of its replacement. Default: a function that logs them.

    Returns:
        float32 (N, 3, H, W) in [0, 1], channels-last.

    Raises:
        NoneLeft: none of the images can be decoded.
        FastaeError: there is no image, an argument is wrong, or DALI is not installed.
    """
    require_type(crop_resize, "crop_resize", CropResize)
    listed = texts([paths] if isinstance(paths, str | os.PathLike) else paths, "paths")
    if len(listed if indices is None else indices) == 0:
        raise SettingError("paths" if indices is None else "indices", "is empty: name at least one image")
    files = ImageFiles(listed, on_replaced or log_replaced)
    decoder = open_decoder(crop_resize, find_device(device), tuning)
    return torch.cat([to_batch(pixels) for pixels in decoder.decode(files, indices)])


def load_held_out(
    folder: ImageFolder,
    crop_resize: CropResize,
    device: torch.device,
    tuning: Tuning = DEFAULT,
    *,
    number: int,
    is_resumed: bool = False,
    on_replaced: Callable[[FileFault, str], None] | None = None,
) -> tuple[ImageFolder, Tensor]:
    """Loads a folder's held-out images, to evaluate on.

    If none of them can be decoded, the folder of a new run is divided again without them.

    Args:
        folder: the images, divided into training and held-out files.
        crop_resize: the crop of each image, and the size of the result.
        device: the device that decodes and keeps the images.
        tuning: the number of threads and other settings that change only the speed.
        number: the most images to load. If there are more, they are evenly spaced.
        is_resumed: whether the folder is that of a run that is resumed, which cannot be divided again.
        on_replaced: is called with each file that cannot be decoded and the path of its replacement. Default:
            a function that logs them.

    Returns:
        The folder as it is divided now, and its images: float32 (N, 3, H, W) in [0, 1], channels-last.

    Raises:
        NoneLeft: none of the held-out images of a resumed run can be decoded.
        FastaeError: fewer than two usable files remain.
    """
    while True:
        indices = evenly_spaced(range(len(folder.held_out)), number)
        try:
            return folder, load_images(
                folder.held_out, crop_resize, device, tuning, indices=indices, on_replaced=on_replaced
            )
        except NoneLeft as error:
            if is_resumed:
                raise
            folder = folder.without(error.faults)
