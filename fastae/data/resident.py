"""All images of a data set as one uint8 array, decoded once; on disk too, as a file that is mapped.

CelebA at 128x128 takes 9.96 GB. An image is S rows of three planes (S, 3, S), the layout that
`fastae.data.pixel_ops` works on; beside the array lie each image's channel means, taken before rounding,
so that the contrast of a batch needs no pass of its own.

An entry of the cache is named by a fingerprint of all that the pixels follow from, but not of where the files
lie. It appears whole or not at all, one process builds while others wait, and a sample is decoded again
whenever it is opened. It lists the files that could not be decoded, so that every run that opens it reports
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.data.check import stamp
from fastae.data.decode import BATCH, Decoder
from fastae.data.jpeg import USABLE, Fault, inspect
from fastae.data.pixel_ops import channel_means
from fastae.data.recovery import ImageFiles
from fastae.data.sampler import evenly_spaced
from fastae.errors import FastaeError
from fastae.utils.cache import building, locked, touch
from fastae.utils.console import log, track
from fastae.utils.device import free_memory
from fastae.utils.environment import DALI_BUILDS, version
from fastae.utils.files import write_json
from fastae.utils.json import read_json

FORMAT = 2
BAD = "bad.json"
"""Of an entry: index -> fault."""

SAMPLE = 16
"""Images that are decoded again when a store is opened."""

HASHED = 256
"""Files whose first and last KiB tell one data set from another that has the same names and sizes."""

TOLERANCE = 1
"""Gray levels by which they may differ: another driver may round otherwise."""

MOST_APART = 0.01
"""Share of an image's numbers that may differ by more."""

DECODER_PACKAGES = (
    *DALI_BUILDS.values(),
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvjpeg",
    "nvidia-nvjpeg-cu12",
    "torch",
)
"""Their versions, as far as installed, are part of the fingerprint: the pixels follow from them."""


@dataclass(frozen=True)
class Store:
    """pixels: uint8 (M, S, 3, S). means: float32 (M, 3) in [0, 255]. Both on the same device.

    bad: the images whose files could not be decoded, and why; their pixels are those of the replacements.
    """

    pixels: Tensor
    means: Tensor
    bad: Mapping[int, Fault]


def store_bytes(count: int, size: int) -> int:
    """Memory that the pixels of `count` images take."""
    return count * size * size * 3


def is_stored(files: ImageFiles, decoder: Decoder, cache: Path) -> bool:
    """Whether `cache` has these images already."""
    return (cache / _fingerprint(files, decoder)).exists()


def open_store(files: ImageFiles, decoder: Decoder, cache: Path | None, device: torch.device) -> Store:
    """The images of `files` on this device; decoded if `cache` does not have them.

    On the CPU they are the cache's file, mapped: processes share its pages.
    Raises FastaeError if the cache cannot be written or is full, or if the images do not fit into memory.
    """
    size = decoder.crop_resize.size
    shape = (len(files), size, 3, size)
    try:
        if cache is None:
            return _in_memory(files, decoder, shape, device)
        store = _in_cache(files, decoder, shape, cache)
        return replace(store, pixels=store.pixels.to(device), means=store.means.to(device))
    except (MemoryError, torch.OutOfMemoryError):
        raise FastaeError(
            f"{np.prod(shape) / 1e9:.1f} GB of images do not fit into {device}'s memory: use the dali loader"
        ) from None


def _in_memory(files: ImageFiles, decoder: Decoder, shape: tuple[int, ...], device: torch.device) -> Store:
    if device.type == "cpu" and np.prod(shape) > free_memory(device):
        raise MemoryError  # Linux would kill the process for it
    try:
        pixels = torch.empty(shape, dtype=torch.uint8, device=device)
    except RuntimeError:  # of which PyTorch's OutOfMemoryError is one
        raise MemoryError from None
    return Store(pixels, _fill(pixels, files, decoder).to(device), files.bad)


def _in_cache(files: ImageFiles, decoder: Decoder, shape: tuple[int, ...], cache: Path) -> Store:
    folder = cache / _fingerprint(files, decoder)
    try:
        with locked(folder):
            store = _open(folder, shape)
            if store is not None and not _agrees(store, files, decoder):
                log(f"resident  {folder.name}: pixels differ from the images, building anew")
                store = None
            if store is not None:
                files.replace(store.bad)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                _build(folder, shape, files, decoder)
                store = _open(folder, shape)
            touch(folder)
    except OSError as error:
        reason = error.strerror or error
        raise FastaeError(
            f"cannot keep the decoded images in {str(cache)!r}: {reason}; "
            "use another cache folder, no cache, or the dali loader"
        ) from None
    assert store is not None
    return store


def _fingerprint(files: ImageFiles, decoder: Decoder) -> str:
    digest = hashlib.sha256()
    # The decoders of CPU and GPU, and of different GPUs, differ by rounding.
    gpu = torch.cuda.get_device_name(decoder.device) if decoder.on_gpu else None
    versions = [version(name) for name in DECODER_PACKAGES]
    digest.update(json.dumps([FORMAT, gpu, asdict(decoder.crop_resize), versions]).encode())
    root = _common_folder(files)
    for path in files.own:
        size, _ = stamp(path) or (0, 0)
        digest.update(f"\0{size} ".encode() + os.fsencode(path.removeprefix(root)))
    for path in evenly_spaced(files.own, HASHED):
        digest.update(_ends(path))
    return f"resident-{digest.hexdigest()[:24]}"


def _common_folder(files: ImageFiles) -> str:
    """The deepest folder that all of them are in or below."""
    # What the first and the last in order have in common, all between them have.
    return os.path.dirname(os.path.commonprefix([min(files.own), max(files.own)]))  # noqa: PTH120, RUF071


def _ends(path: str, length: int = 1 << 10) -> bytes:
    """The first and the last bytes of a file; nothing where it cannot be read, or is a pipe by now."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            first = file.read(length)
            file.seek(max(0, os.fstat(file.fileno()).st_size - length))
            return first + file.read(length)
    except OSError:
        return b""


def _build(folder: Path, shape: tuple[int, ...], files: ImageFiles, decoder: Decoder) -> None:
    root = os.path.abspath(_common_folder(files))  # noqa: PTH100
    data = f"{len(files):,} images of {root}, {shape[1]}x{shape[1]}"
    with building(folder, "resident", data) as draft:
        path = draft / "pixels.npy"
        pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        with path.open("r+b") as file:
            # Reserved now: a full disk is an error here, but kills a process that writes through a map.
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        means = _fill(torch.from_numpy(pixels), files, decoder)
        pixels.flush()
        np.save(draft / "means.npy", means.numpy())
        write_json(draft / BAD, files.bad)


def _fill(pixels: Tensor, files: ImageFiles, decoder: Decoder) -> Tensor:
    """Decodes every image into `pixels`; returns the channel means (M, 3)."""
    means = torch.empty(len(files), 3)
    batches = -(-len(files) // BATCH)
    first = 0
    for batch in track(decoder.decode(files), "decoding images once", total=batches):
        here = slice(first, first + len(batch))
        means[here] = channel_means(batch).cpu()
        pixels[here].copy_(batch.round().byte())
        first += len(batch)
    return means


def _open(folder: Path, shape: tuple[int, ...]) -> Store | None:
    """The store in a folder, mapped; None if there is none of this shape."""
    try:
        # Copy-on-write, since PyTorch warns of memory that it may not write to; nobody writes.
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "c")
        with (folder / "means.npy").open("rb") as file:
            means = np.lib.format.read_array(file, allow_pickle=False)
        bad = {int(index): Fault(fault) for index, fault in read_json(folder / BAD).items()}
    except Exception:  # whatever the parsers raise over a damaged file
        return None
    if (pixels.shape, pixels.dtype) != (shape, np.uint8):
        return None
    if (means.shape, means.dtype) != ((shape[0], 3), np.float32):
        return None
    if not bad.keys() < set(range(shape[0])):
        return None
    return Store(torch.from_numpy(pixels), torch.from_numpy(means), bad)


def _agrees(store: Store, files: ImageFiles, decoder: Decoder) -> bool:
    """Whether a sample of the images is what is stored, and a sample of the bad files is still bad."""
    bad = [files.own[index] for index in evenly_spaced(list(store.bad), SAMPLE)]
    if not all(decoder.faults([path for path in bad if inspect(path).fault in USABLE])):
        return False
    as_stored = ImageFiles(files.own)
    as_stored.replace(store.bad)
    places = evenly_spaced(range(len(files)), SAMPLE)
    decoded = torch.cat([batch.round().cpu() for batch in decoder.decode(as_stored, places)])
    apart = (decoded - store.pixels[places]).abs() > TOLERANCE
    return bool((apart.float().mean((1, 2, 3)) <= MOST_APART).all())
