"""JPEG files to augmented float batches: fastae's loaders and their peers, images/s on the same files.

Each runs in a process of its own with the same number of workers or threads in all. Warm-up is left
out; `first epoch` includes everything from opening the loader on, building the resident array too.

    python -m benchmarks.loaders [--images DIR] [--threads 2] [--quick]
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks import peers
from benchmarks.measure import REPEATS, Figure, isolated, rates
from fastae.augment import Augmentation
from fastae.data.sampler import Sampler
from fastae.data.source import open_source

BATCH = 64
OURS = ("fastae dali", "fastae resident")
NAMES = (*OURS, *peers.PEERS)
WARM_UP = 10


def measure(name: str, images: str | None, threads: int, batches: int, device: str) -> dict[str, Any]:
    """One variant in this process: {"rate": Figure, "first_epoch": images/s, "images": n} or {"absent"}."""
    folder, _ = open_source(images)
    sampler = Sampler(len(folder.train), BATCH, 0, Augmentation())
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        if name in OURS:
            stream: Iterator[Any] = _ours(name.split()[1], images, threads, device, Path(scratch))
        elif why := peers.missing(name):
            return {"absent": why}
        else:
            stream = peers.PEERS[name].batches(folder.train, sampler, threads, Path(scratch))
        synchronise = _synchronise(device)
        epoch = sampler.count // BATCH
        first_epoch = None
        if name in OURS:  # from opening on: what a first epoch costs
            _take(stream, epoch)
            synchronise()
            first_epoch = epoch * BATCH / (time.perf_counter() - started)
        _take(stream, WARM_UP)
        synchronise()

        def work() -> int:
            _take(stream, batches)
            synchronise()
            return batches * BATCH

        rate = rates(work)

    return {"rate": asdict(rate), "first_epoch": first_epoch, "images": sampler.count}


def _ours(kind: str, images: str | None, threads: int, device: str, cache: Path) -> Iterator[Any]:
    import torch

    from fastae.data import open_loader
    from fastae.utils.memory import keep_freed_memory

    if device == "cpu":
        keep_freed_memory()
        # Two stages work side by side, DALI's decoder and the passes: the threads are shared out.
        torch.set_num_threads(threads if kind == "resident" else max(1, threads // 2))
    loader = open_loader(
        open_source(images)[0].root,
        kind=kind,
        batch_size=BATCH,
        device=device,
        seed=0,
        threads=threads if kind == "resident" or device != "cpu" else max(1, threads - threads // 2),
        cache=cache,
    )
    return loader.batches()


def _take(stream: Iterator[Any], number: int) -> None:
    for _ in itertools.islice(stream, number):
        pass


def _synchronise(device: str) -> Callable[[], None]:
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def measure_all(
    images: str | None, threads: int, quick: bool, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Every variant, each in its own process; name -> what `measure` returns."""
    batches = 10 if quick else 60
    common = ["--threads", str(threads), "--batches", str(batches), "--device", device]
    if images:
        common += ["--images", images]
    return {name: isolated("benchmarks.loaders", ["--one", name, *common], log) for name in NAMES}


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """The results for a terminal, with each one's ratio to the fastest peer."""
    measured = {name: Figure(**found["rate"]) for name, found in results.items() if "rate" in found}
    others = [figure.median for name, figure in measured.items() if name not in OURS]
    fastest = max(others, default=None)
    shown = []
    for name, found in results.items():
        if name not in measured:
            shown.append(f"  {name:22} absent: {found['absent']}")
            continue
        figure = measured[name]
        line = f"  {name:22} {figure.median:9,.0f} images/s  ({figure.low:,.0f}-{figure.high:,.0f})"
        if fastest:
            line += f"  {figure.median / fastest:5.2f}x the fastest peer"
        if found.get("first_epoch"):
            line += f"; first epoch, opening included, {found['first_epoch']:,.0f}"
        shown.append(line)
    return shown


@click.command(help=__doc__)
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the built-in synthetic faces.")
@click.option("--threads", default=2, show_default=True, help="Workers or threads for each.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--batches", default=60, show_default=True, help=f"Batches of {BATCH} a repeat; {REPEATS} repeats."
)
@click.option("--quick", is_flag=True, help="A sixth of the batches.")
@click.option("--one", type=click.Choice(NAMES), help="This variant alone, as JSON.")
def main(images: str | None, threads: int, device: str, batches: int, quick: bool, one: str | None) -> None:
    if one:
        print(json.dumps(measure(one, images, threads, batches, device)))
        return
    for line in lines(measure_all(images, threads, quick, device, log=lambda text: None)):
        print(line)


if __name__ == "__main__":
    main()
