"""Batches for training, from JPEG files: `open_loader(...).batches(start)`.

    dali    every epoch, DALI reads, decodes, crops, resizes, flips and recolours the files: on the GPU
            where there is one, else the same graph on DALI's CPU backend

Every batch is a function of (seed, iteration), so the iteration number is a loader's whole state.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastae.augment import Augmentation
from fastae.data.folder import open_folder
from fastae.data.geometry import Geometry
from fastae.data.order import Order
from fastae.environment import version
from fastae.errors import FastaeError

DALI_BUILDS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
KINDS = ("dali",)
READ_BATCH = 64


class DaliLoader:
    """Streams augmented batches of JPEG files through DALI. Made by `open_loader`."""

    kind = "dali"

    def __init__(
        self,
        paths: Sequence[str],
        order: Order,
        geometry: Geometry,
        device: torch.device,
        threads: int,
    ) -> None:
        self.paths = paths
        self.order = order
        self.geometry = geometry
        self.device = device
        self.threads = threads

    def batches(self, start: int = 0) -> Iterator[torch.Tensor]:
        """The batches of iterations start, start + 1, ..., without end.

        Each is float32, (N, 3, S, S), channels-last, in [0, 1], on the loader's device.
        """
        from fastae.data.pipeline import Engine, read_batches

        engine = Engine(self.device, self.order.batch_size, self.threads)
        return read_batches(self.paths, self.order.plans(start), self.geometry, engine)


def open_loader(
    source: str | Path | Sequence[str],
    *,
    kind: str = "dali",
    batch_size: int,
    device: str | torch.device,
    seed: int,
    augmentation: Augmentation | None = None,
    geometry: Geometry | None = None,
    threads: int | None = None,
) -> DaliLoader:
    """A loader over the training images of a folder, or over exactly the files of a list.

    augmentation: ranges of the random colour changes (default: `Augmentation()`).
    geometry: crop, size, antialias (default: the largest square, 128 pixels, none).
    threads: CPU threads that decode (default: `default_threads()`).

    Raises FastaeError for a bad folder, fewer images than `batch_size`, or a missing DALI.
    """
    if kind not in KINDS:
        raise FastaeError(f"loader {kind!r} is not one of: {', '.join(KINDS)}")
    require_dali()
    geometry = geometry or Geometry()
    if isinstance(source, str | Path):
        source = open_folder(source, geometry.crop).train
    if batch_size > len(source):
        raise FastaeError(f"--batch-size {batch_size} is more than the {len(source)} training images")
    order = Order(len(source), batch_size, seed, augmentation or Augmentation())
    return DaliLoader(source, order, geometry, torch.device(device), threads or default_threads())


def load_images(
    paths: Sequence[str],
    geometry: Geometry,
    device: str | torch.device,
    threads: int | None = None,
) -> torch.Tensor:
    """These images, cut out and resized but not augmented: float32 (N, 3, S, S) in [0, 1]."""
    require_dali()
    from fastae.data.pipeline import Engine, read_images

    engine = Engine(torch.device(device), min(READ_BATCH, len(paths)), threads or default_threads())
    # Copied batch by batch: a batch is DALI's memory, and holding them all would pin its buffers.
    return torch.cat([batch.clone() for batch in read_images(paths, geometry, engine)])


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
