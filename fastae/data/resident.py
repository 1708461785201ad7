"""All images of a data set as one uint8 array, decoded once; on disk as a memory-mapped file besides.

CelebA at 128x128 takes 9.96 GB. An image is S rows of three planes (S, 3, S), the layout that
`fastae.data.pixels` works on; beside the array lie each image's channel means, taken before rounding,
so that the contrast of a batch needs no pass of its own.

An entry of the cache is named by a fingerprint of all that the pixels follow from, but not of where the files
lie. It appears whole or not at all, one process builds while others wait, and a sample is decoded again
whenever it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.cache import building, locked, touch
from fastae.console import say, track
from fastae.data.check import stamp
from fastae.data.decode import BATCH, Decoder
from fastae.data.memory import free_bytes
from fastae.data.mending import ImageFiles
from fastae.data.pixels import channel_means
from fastae.environment import DALI_BUILDS, version
from fastae.errors import FastaeError

FORMAT = 1
SAMPLE = 16
"""Images that are decoded again when a store is opened."""

HASHED = 256
"""Files whose first and last KiB tell one data set from another that has the same names and sizes."""

TOLERANCE = 1
"""Grey levels by which they may differ: another thread count or driver may round otherwise."""


@dataclass(frozen=True)
class Store:
    """pixels: uint8 (M, S, 3, S). means: float32 (M, 3) in [0, 1]. Both on the training device."""

    pixels: Tensor
    means: Tensor


def store_bytes(count: int, size: int) -> int:
    """Memory that the pixels of `count` images take."""
    return count * size * size * 3


def open_store(files: ImageFiles, decoder: Decoder, cache: Path | None) -> Store:
    """The images of `files` on the decoder's device; built where `cache` has none that fits.

    Raises FastaeError where the cache cannot be written or is full.
    """
    shape = (len(files), decoder.geometry.size, 3, decoder.geometry.size)
    if cache is None:
        if decoder.device.type == "cpu" and store_bytes(*shape[:2]) > free_bytes(decoder.device):
            raise FastaeError(_does_not_fit(shape, decoder.device))  # Linux would kill the process for it
        try:
            pixels = torch.empty(shape, dtype=torch.uint8, device=decoder.device)
        except RuntimeError:  # of which PyTorch's OutOfMemoryError is one
            raise FastaeError(_does_not_fit(shape, decoder.device)) from None
        return Store(pixels, _fill(pixels, files, decoder).to(decoder.device))
    folder = cache / _fingerprint(files, decoder)
    try:
        with locked(folder):
            store = _open(folder, shape)
            if store is not None and not _sample_agrees(store, files, decoder):
                say(f"resident  {folder.name}: pixels differ from the images, building anew")
                store = None
            if store is None:
                shutil.rmtree(folder, ignore_errors=True)
                _build(folder, shape, files, decoder)
                store = _open(folder, shape)
            touch(folder)
    except OSError as error:
        reason = error.strerror or error
        raise FastaeError(
            f"cannot keep the decoded images in {str(cache)!r}: {reason}; "
            "use --cache-dir, --no-cache or --loader dali"
        ) from None
    assert store is not None
    try:
        return Store(store.pixels.to(decoder.device), store.means.to(decoder.device))
    except torch.OutOfMemoryError:
        raise FastaeError(_does_not_fit(shape, decoder.device)) from None


def _does_not_fit(shape: tuple[int, ...], device: torch.device) -> str:
    return f"{np.prod(shape) / 1e9:.1f} GB of images do not fit into {device}'s memory: use --loader dali"


def _fingerprint(files: ImageFiles, decoder: Decoder) -> str:
    digest = hashlib.sha256()
    versions = [version(name) for name in (*DALI_BUILDS, "torch")]
    digest.update(json.dumps([FORMAT, decoder.name, asdict(decoder.geometry), versions]).encode())
    root = _common_folder(files)
    for path in files.paths:
        size, _ = stamp(path) or (0, 0)
        digest.update(f"\0{size} ".encode() + os.fsencode(path.removeprefix(root)))
    for place in np.unique(np.linspace(0, len(files) - 1, HASHED).astype(int)):
        digest.update(_ends(files.paths[place]))
    return f"resident-{digest.hexdigest()[:24]}"


def _common_folder(files: ImageFiles) -> str:
    """The deepest folder that all of them are in or below."""
    # What the first and the last in order have in common, all between them have.
    return os.path.dirname(os.path.commonprefix([min(files.paths), max(files.paths)]))  # noqa: PTH120, RUF071


def _ends(path: str, length: int = 1 << 10) -> bytes:
    """The first and the last bytes of a file; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
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


def _fill(pixels: Tensor, files: ImageFiles, decoder: Decoder) -> Tensor:
    """Decodes every image into `pixels`; returns the channel means (M, 3)."""
    means = torch.empty(len(files), 3)
    batches = -(-len(files) // BATCH)
    first = 0
    for batch in track(decoder.decode(files), "decoding images once", total=batches):
        here = slice(first, first + len(batch))
        means[here] = channel_means(batch).cpu()
        pixels[here].copy_(batch.round())
        first += len(batch)
    return means


def _open(folder: Path, shape: tuple[int, ...]) -> Store | None:
    """The store in a folder, mapped; None where there is none of this shape."""
    try:
        # Copy-on-write, since PyTorch warns of memory that it may not write to; nobody writes.
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "c")
        with (folder / "means.npy").open("rb") as file:
            means = np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # whatever NumPy's parsers raise over a damaged file
        return None
    if (pixels.shape, pixels.dtype) != (shape, np.uint8):
        return None
    if (means.shape, means.dtype) != ((shape[0], 3), np.float32):
        return None
    return Store(torch.from_numpy(pixels), torch.from_numpy(means))


def _sample_agrees(store: Store, files: ImageFiles, decoder: Decoder) -> bool:
    places = np.unique(np.linspace(0, len(files) - 1, SAMPLE).astype(int)).tolist()
    sample = ImageFiles([files.paths[place] for place in places])
    decoded = torch.cat([batch.cpu() for batch in decoder.decode(sample)])
    return bool((decoded.round() - store.pixels[places]).abs().max() <= TOLERANCE)
