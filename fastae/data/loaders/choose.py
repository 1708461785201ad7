"""Makes the source of the batches of checked files, of the kind that suits them.

dali        Every epoch, DALI reads and decodes the files. On a GPU, DALI's graph also augments the
            images; on a CPU, `fastae.data.loaders.kernel` does.
resident    Every file is decoded once, into one array on the training device. Each step gathers a batch
            from the array and augments it.
host        The array is in host memory, and a thread gathers batches and uploads them to the GPU. On a
            CPU this is `resident`.
auto        resident if the array fits in half of the device's free memory, else host if it fits in half
            of the host's, else dali. Without a cache, each rank on a machine has an array of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.dali import DaliSource
from fastae.data.loaders.decode import Decoder
from fastae.data.loaders.host import HostSource
from fastae.data.loaders.resident import ResidentSource
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import is_stored, open_store, store_bytes
from fastae.device.memory import free_memory
from fastae.errors import SettingError
from fastae.utils.arguments import LoaderKind
from fastae.utils.console import counted, size
from fastae.utils.files import is_writable, nearest_existing
from fastae.utils.ranks import local_ranks

CPU = torch.device("cpu")


def build_source(
    files: ImageFiles,
    sampler: Sampler,
    decoder: Decoder,
    kind: LoaderKind = "auto",
    cache: Path | None = None,
    agree: Callable[[str], str] = str,
) -> BatchSource:
    """Makes a source of the batches of files that have passed the quick check.

    Args:
        files: the images' files.
        sampler: the images of each batch.
        decoder: decodes the files.
        kind: how batches are made.
        cache: the folder for the decoded images. With None they are kept in memory only.
        agree: takes the kind that this rank would choose, and returns the one that all ranks use.

    Raises:
        SettingError: the batch size does not suit the number of images or ranks.
        FastaeError: as for `open_store`.
    """
    _require_whole_batches(sampler)
    note = ""
    if kind == "auto":
        kind, note = _choose_kind(files, decoder, cache)
        kind = cast(LoaderKind, agree(kind))
    source: BatchSource
    if kind == "dali":
        source = DaliSource(files, sampler, decoder)
    elif kind == "host" and decoder.on_gpu:
        source = HostSource(open_store(files, decoder, cache, device=CPU), sampler, decoder)
    else:
        source = ResidentSource(open_store(files, decoder, cache, device=decoder.device), sampler, decoder)
    source.note = note
    return source


def _require_whole_batches(sampler: Sampler) -> None:
    """Raises SettingError unless the batch size suits the number of images and ranks."""
    count, batch_size = sampler.count, sampler.batch_size
    if sampler.shuffle and batch_size > count:
        images = counted(count, "image")
        raise SettingError(
            "batch_size", f"{batch_size} is more than the {images} of the split: use at most {count}"
        )
    if batch_size % sampler.parts:
        raise SettingError("batch_size", f"{batch_size} cannot be shared equally by {sampler.parts} ranks")
    if sampler.parts > count:
        raise SettingError("shard", f"has {sampler.parts} ranks for {counted(count, 'image')}")


def _choose_kind(files: ImageFiles, decoder: Decoder, cache: Path | None) -> tuple[LoaderKind, str]:
    """Chooses resident, host or dali; returns the choice and its reason, in words."""
    once = store_bytes(len(files), decoder.crop_resize)
    places: dict[LoaderKind, torch.device] = {"resident": decoder.device}
    if decoder.on_gpu:
        places["host"] = CPU
    for kind, device in places.items():
        # Ranks share the pages of a file in the cache, and each has a GPU of its own.
        copies = local_ranks() if device.type == "cpu" and not cache else 1
        needed, allowed = once * copies, free_memory(device) / 2
        note = f"{size(needed)} of images, {size(allowed)} is half of the free memory"
        if needed <= allowed:
            obstacle = _obstacle(files, decoder, cache, needed=once) if cache else None
            return ("dali", obstacle) if obstacle else (kind, note)
    return "dali", note


def _obstacle(files: ImageFiles, decoder: Decoder, cache: Path, needed: int) -> str | None:
    """Returns why the cache cannot store this many bytes of images, in words; None if it can, or has."""
    free = shutil.disk_usage(nearest_existing(cache)).free
    if not is_writable(cache):
        obstacle = f"the cache {str(cache)!r} is not writable"
    elif needed > free:
        obstacle = f"{size(needed)} of images, {size(free)} free in {cache}"
    else:
        return None
    return None if is_stored(files, decoder, cache) else obstacle
