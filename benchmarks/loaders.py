"""Measures fastae's loaders and their peers, from JPEG files to augmented batches, in images/s.

All read the same files, each in a separate process, with the same number of decoding threads or workers.
Warm-up is excluded. `first epoch` includes opening the loader, and decoding for the resident array.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks import peers
from benchmarks.measure import Figure, isolated, rates, take

if TYPE_CHECKING:
    from fastae.data.loaders.batch_source import LoaderKind

BATCH = 64
OURS = ("fastae resident", "fastae host", "fastae dali")
NAMES = (*OURS, *peers.PEERS)
WARM_UP = 10


def measure(name: str, images: str | None, threads: int, batches: int, device: str) -> dict[str, Any]:
    """Measures one variant; returns {"rate": Figure, "first_epoch": images/s, ...} or {"absent": reason}."""
    from fastae.data.loaders.sampler import Sampler
    from fastae.data.source import open_source
    from fastae.experiment.augment import Augmentation

    folder, _ = open_source(images)
    sampler = Sampler(len(folder.train), BATCH, 0, Augmentation())
    first_epoch = None
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        if name in OURS:
            kind = name.split()[1]
            stream: Iterator[Any] = _ours(
                cast("LoaderKind", kind), str(folder.root), threads, device, Path(scratch)
            )
            epoch = sampler.batches_per_epoch
            take(stream, epoch, device)
            first_epoch = epoch * BATCH / (time.perf_counter() - started)
        elif why := peers.missing(name):
            return {"absent": why}
        else:
            stream = peers.PEERS[name].batches(folder.train, sampler, threads, Path(scratch))
        take(stream, WARM_UP, device)

        def work() -> int:
            take(stream, batches, device)
            return batches * BATCH

        rate = rates(work)
    gathers_only = name == "fastae host" and device == "cpu"
    return {
        "rate": asdict(rate),
        "first_epoch": first_epoch,
        "images": sampler.count,
        "gathers_only": gathers_only,
    }


def _ours(kind: LoaderKind, root: str, threads: int, device: str, cache: Path) -> Iterator[Any]:
    """Yields batches of our loaders. Without a GPU, `host` only gathers into buffers, as its thread does."""
    import torch

    from fastae.data import Tuning, open_loader
    from fastae.data.loaders import host
    from fastae.utils.limits import keep_freed_memory

    if device == "cpu":
        keep_freed_memory()
        torch.set_num_threads(threads)
    source: Any = open_loader(
        root,
        BATCH,
        split="train",
        kind=kind,
        device=device,
        seed=0,
        tuning=Tuning(threads=threads),
        cache=cache,
    ).source
    if kind != "host" or device != "cpu":
        yield from source.batches()
    for iteration in itertools.count():
        yield host.gather(source.store, source.sampler.at(iteration))


def measure_all(
    images: str | None, threads: int, quick: bool, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures every variant in a separate process; returns name -> result of `measure`."""
    common = {"images": images, "threads": threads, "batches": 10 if quick else 60, "device": device}
    return {name: isolated("benchmarks.loaders:measure", {"name": name, **common}, log) for name in NAMES}


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the results as lines, with the ratio to the fastest peer."""
    measured = {name: Figure(**found["rate"]) for name, found in results.items() if "rate" in found}
    fastest = max((figure.median for name, figure in measured.items() if name not in OURS), default=None)
    shown = []
    for name, found in results.items():
        if name not in measured:
            shown.append(f"  {name:22} absent: {found['absent']}")
            continue
        figure = measured[name]
        line = f"  {name:22} {figure.median:9,.0f} images/s  ({figure.low:,.0f}-{figure.high:,.0f})"
        if found.get("gathers_only"):
            line += "  gathering only: the rest needs a GPU"
        elif fastest:
            line += f"  {figure.median / fastest:5.2f}x the fastest peer"
        if found.get("first_epoch") and not found.get("gathers_only"):
            line += f"; first epoch with opening {found['first_epoch']:,.0f}"
        shown.append(line)
    return shown
