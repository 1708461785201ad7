"""Decodes all images of a data set once, into one uint8 array that is cached in a memory-mapped file.

CelebA at 128x128 takes 9.96 GB. An image has H rows of three planes, (H, 3, W), so that a loop along a
row of one channel can read all three channels of a pixel. The channel means of each image are stored too,
taken before rounding, so that the contrast of a batch needs no extra pass over the pixels.

An entry of the cache is named by a fingerprint of everything that the pixels depend on; the path of the data
folder is not part of it. The entry appears once it is complete. One process builds it while others wait, and
whenever it is opened, every block is compared with its digest. It lists the files that could not be decoded,
so that every run that opens it reports them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.check import stamp
from fastae.data.files.faults import USABLE, Fault
from fastae.data.files.inspect import inspect
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.pixel_ops import channel_means
from fastae.data.loaders.tuning import BATCH
from fastae.device.memory import free_memory, is_out_of_memory
from fastae.errors import FastaeError
from fastae.utils.cache import damage, ensure_entry
from fastae.utils.console import track
from fastae.utils.environment import DALI_BUILDS, version
from fastae.utils.files import open_unblocked, write_json
from fastae.utils.json import read_json
from fastae.utils.sample import evenly_spaced

FORMAT = 3
PIXELS, MEANS = "pixels.npy", "means.npy"
BAD = "bad.json"
"""The file of an entry that maps index -> fault of files that could not be decoded."""

SAMPLE = 16
"""How many of the files that could not be decoded are tried again when a store is opened."""

HASHED = 256
"""The number of files whose content is hashed, to distinguish data sets with the same names and sizes."""

HASHED_BYTES = 1 << 20
"""The number of bytes at a file's start that are hashed. Most photographs are hashed as a whole."""

DECODER_PACKAGES = (
    *DALI_BUILDS.values(),
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvjpeg",
    "nvidia-nvjpeg-cu12",
    "torch",
)
"""Packages whose versions are part of the fingerprint, since the pixels depend on them."""


@dataclass(frozen=True)
class Store:
    """Decoded images. Both tensors are on the same device."""

    pixels: Tensor
    """uint8 (M, H, 3, W)."""

    means: Tensor
    """The channel means of each image: float32 (M, 3) in [0, 255]."""

    bad: Mapping[int, Fault]
    """Index -> fault of files that could not be decoded. Their pixels are those of the replacements."""


def store_bytes(count: int, crop_resize: CropResize) -> int:
    """The number of bytes that the pixels of `count` images take."""
    return count * math.prod(crop_resize.shape) * 3


def is_stored(files: ImageFiles, decoder: Decoder, cache: Path) -> bool:
    """Whether `cache` contains these images."""
    return os.path.exists(cache / _fingerprint(files, decoder))


def open_store(files: ImageFiles, decoder: Decoder, cache: Path | None, device: torch.device) -> Store:
    """Opens the images of `files` on a device. They are decoded unless the cache contains them.

    On the CPU the cache's file is mapped, so that processes share its pages.

    Args:
        files: the images' files. Those that cannot be decoded are replaced.
        decoder: decodes the files.
        cache: the cache folder. With None, the images are kept in memory only.
        device: the device of the result.

    Raises:
        FastaeError: the cache cannot be written, or the images do not fit on the disk or into memory.
    """
    height, width = decoder.crop_resize.shape
    shape = (len(files), height, 3, width)
    try:
        if cache is None:
            return _in_memory(files, decoder, shape, device=device)
        store = _in_cache(files, decoder, shape, cache=cache)
        return replace(store, pixels=store.pixels.to(device), means=store.means.to(device))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise FastaeError(
            f"{np.prod(shape) / 1e9:.1f} GB of images do not fit into {device}'s memory: use the dali loader"
        ) from None


def _in_memory(files: ImageFiles, decoder: Decoder, shape: tuple[int, ...], device: torch.device) -> Store:
    if device.type == "cpu" and np.prod(shape) > free_memory(device):
        raise MemoryError  # otherwise Linux would kill the process
    pixels = torch.empty(shape, dtype=torch.uint8, device=device)
    return Store(pixels, _fill(pixels, files, decoder).to(device), files.bad)


def _in_cache(files: ImageFiles, decoder: Decoder, shape: tuple[int, ...], cache: Path) -> Store:
    folder = cache / _fingerprint(files, decoder)
    root = os.path.abspath(_common_folder(files))
    data = f"{len(files):,} images of {root}, {shape[1]}x{shape[3]}"

    def build(draft: Path) -> None:
        with suppress(OSError):  # a damaged store would take as much disk space as the new one
            (folder / PIXELS).unlink()
        _build(draft, shape, files, decoder=decoder)

    try:
        fault = partial(_fault, files=files, decoder=decoder)
        ensure_entry(folder, "resident", data, fill=build, fault=fault)
        store = _open(folder)
    except OSError as error:
        reason = error.strerror or error
        raise FastaeError(
            f"cannot keep the decoded images in {str(cache)!r}: {reason}; "
            "use another cache folder, no cache, or the dali loader"
        ) from None
    # Files that were found while the store was built are replaced and reported already.
    files.replace({index: why for index, why in store.bad.items() if index not in files.bad})
    return store


def _fingerprint(files: ImageFiles, decoder: Decoder) -> str:
    digest = hashlib.sha256()
    # The results of the CPU, and of each GPU model, differ by rounding.
    gpu = torch.cuda.get_device_name(decoder.device) if decoder.on_gpu else None
    versions = [version(name) for name in DECODER_PACKAGES]
    digest.update(json.dumps([FORMAT, gpu, asdict(decoder.crop_resize), versions]).encode())
    root = _common_folder(files)
    for path in files.own:
        size, _ = stamp(path) or (0, 0)
        digest.update(f"\0{size} ".encode() + os.fsencode(path.removeprefix(root)))
    for path in evenly_spaced(files.own, HASHED):
        digest.update(_content(path))
    return f"resident-{digest.hexdigest()[:24]}"


def _common_folder(files: ImageFiles) -> str:
    """The deepest folder that contains all files."""
    # All paths share the prefix that the first and the last in sorted order have in common.
    return os.path.dirname(os.path.commonprefix([min(files.own), max(files.own)]))  # noqa: RUF071


def _content(path: str) -> bytes:
    """The first HASHED_BYTES of a file; empty if it cannot be read, or is a pipe."""
    try:
        with open_unblocked(path) as file:
            return file.read(HASHED_BYTES) or b""
    except OSError:
        return b""


def _build(draft: Path, shape: tuple[int, ...], files: ImageFiles, decoder: Decoder) -> None:
    path = draft / PIXELS
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("r+b") as file:
        # The space is reserved now: on a full disk this raises, but writing through a map kills the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    means = _fill(torch.from_numpy(pixels), files, decoder)
    np.save(draft / MEANS, means.numpy())
    write_json(draft / BAD, files.bad)


def _fill(pixels: Tensor, files: ImageFiles, decoder: Decoder) -> Tensor:
    """Decodes every image into `pixels`; returns the channel means (M, 3)."""
    means = torch.empty(len(files), 3)
    parts = list(zip(pixels.split(BATCH), means.split(BATCH), strict=True))
    decoded = track(decoder.decode(files), "decoding images once", total=len(parts))
    for images, (into_pixels, into_means) in zip(decoded, parts, strict=True):
        into_means.copy_(channel_means(images))
        into_pixels.copy_(images.round().byte())
    return means


def _open(folder: Path) -> Store:
    """Opens the store in a folder whose digests were compared. The pixels are mapped. Raises OSError."""
    # The map is copy-on-write, since PyTorch warns about read-only memory. Nothing is written.
    pixels = np.load(folder / PIXELS, mmap_mode="c", allow_pickle=False)
    means = np.load(folder / MEANS, allow_pickle=False)
    return Store(torch.from_numpy(pixels), torch.from_numpy(means), read_json(folder / BAD, dict[int, Fault]))


def _fault(folder: Path, files: ImageFiles, decoder: Decoder) -> str | None:
    """Returns why a store must be rebuilt, in words; None if it is up to date.

    Either it is damaged, or one of a sample of the files that could not be decoded can be decoded now.
    """
    if damaged := damage(folder):
        return damaged
    bad = [files.own[index] for index in evenly_spaced(list(_open(folder).bad), SAMPLE)]
    if all(decoder.faults([path for path in bad if inspect(path).fault in USABLE])):
        return None
    return "files that could not be decoded have been repaired"
