"""All images of a data set as one uint8 array, decoded once; on disk as a memory-mapped file besides.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.data.check import stamp
from fastae.data.decode import BATCH, Decoder
from fastae.data.jpeg import USABLE, Fault, inspect
from fastae.data.memory import free_bytes
from fastae.data.pixel_ops import channel_means
from fastae.data.recovery import ImageFiles
from fastae.errors import FastaeError
from fastae.utils.cache import building, locked, touch
from fastae.utils.console import log, track
from fastae.utils.environment import DALI_BUILDS, version
from fastae.utils.files import write_json
from fastae.utils.json import read_json

FORMAT = 1
BAD = "bad.json"
"""Of an entry: index -> fault."""

SAMPLE = 16
"""Images that are decoded again when a store is opened."""

HASHED = 256
"""Files whose first and last KiB tell one data set from another that has the same names and sizes."""

TOLERANCE = 1
"""Grey levels by which they may differ: another thread count or driver may round otherwise."""


@dataclass(frozen=True)
class Store:
    """pixels: uint8 (M, S, 3, S). means: float32 (M, 3) in [0, 1]. Both on the training device.

    bad: the images whose files could not be decoded, and why; their pixels are those of the replacements.
    """

    pixels: Tensor
    means: Tensor
    bad: Mapping[int, Fault]


def store_bytes(count: int, size: int) -> int:
    """Memory that the pixels of `count` images take."""
    return count * size * size * 3


def open_store(files: ImageFiles, decoder: Decoder, cache: Path | None) -> Store:
    """The images of `files` on the decoder's device; built where `cache` has none that fits.

    Raises FastaeError if the cache cannot be written or is full.
    """
    shape = (len(files), decoder.crop_resize.size, 3, decoder.crop_resize.size)
    if cache is None:
        if decoder.device.type == "cpu" and store_bytes(*shape[:2]) > free_bytes(decoder.device):
            raise FastaeError(_does_not_fit(shape, decoder.device))  # Linux would kill the process for it
        try:
            pixels = torch.empty(shape, dtype=torch.uint8, device=decoder.device)
        except RuntimeError:  # of which PyTorch's OutOfMemoryError is one
            raise FastaeError(_does_not_fit(shape, decoder.device)) from None
        return Store(pixels, _fill(pixels, files, decoder).to(decoder.device), files.bad)
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
            "use --cache-dir, --no-cache or --loader dali"
        ) from None
    assert store is not None
    try:
        return replace(store, pixels=store.pixels.to(decoder.device), means=store.means.to(decoder.device))
    except torch.OutOfMemoryError:
        raise FastaeError(_does_not_fit(shape, decoder.device)) from None


def _does_not_fit(shape: tuple[int, ...], device: torch.device) -> str:
    return f"{np.prod(shape) / 1e9:.1f} GB of images do not fit into {device}'s memory: use --loader dali"


def _fingerprint(files: ImageFiles, decoder: Decoder) -> str:
    digest = hashlib.sha256()
    versions = [version(name) for name in (*DALI_BUILDS, "torch")]
    digest.update(json.dumps([FORMAT, decoder.name, asdict(decoder.crop_resize), versions]).encode())
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
        pixels[here].copy_(batch.round())
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
    bad = [files.own[index] for index in _spread(list(store.bad))]
    if not all(decoder.faults([path for path in bad if inspect(path).fault in USABLE])):
        return False
    as_stored = ImageFiles(files.own)
    as_stored.replace(store.bad)
    places = _spread(range(len(files)))
    decoded = torch.cat([batch.cpu() for batch in decoder.decode(as_stored, places)])
    return bool((decoded.round() - store.pixels[places]).abs().max() <= TOLERANCE)


def _spread(items: Sequence[int]) -> list[int]:
    """At most SAMPLE of them, evenly spaced."""
    places = np.linspace(0, len(items) - 1, min(SAMPLE, len(items)))
    return [items[place] for place in places.astype(int)]
