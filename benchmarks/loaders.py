"""Measures fastae's loaders and their peers, from JPEG files to augmented batches on the device, in images/s.

All read the same files, each in a separate process, with the same number of decoding threads or workers.
Warm-up is excluded. `first epoch` includes opening the loader, and decoding for the resident array.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.measure import Figure, isolated, rates, take
from benchmarks.peers import PEERS, Work
from benchmarks.task import Task

BATCH = 64
OURS: dict[str, tuple[Work, ...]] = {
    "fastae resident": (Work.DECODING,),
    "fastae host": (Work.DECODING,),
    "fastae dali": (),
}
"""fastae's loaders -> the work that they do not do."""

DOES_NOT = OURS | {name: peer.does_not for name, peer in PEERS.items()}
WARM_UP = 10
CHUNK = 10
"""Batches between two synchronisations. A loader for a GPU does not wait, and its batches take memory."""


def measure(name: str, images: str | None, threads: int, seconds: float, device: str) -> dict[str, Any]:
    """Measures one variant. Each repeat lasts at least `seconds`.

    Returns:
        "rate", a Figure; "busy", the number of CPU cores that it kept busy; "does_not", the work that it does
        not do; "images", their number; and "first_epoch", images/s, of fastae's loaders. Or
        {"absent": reason}.
    """
    from fastae.data.loaders.sampler import Sampler
    from fastae.data.source import open_source
    from fastae.experiment.augment import Augmentation

    if name in PEERS and (why := peers.missing(name)):
        return {"absent": why}
    folder, _ = open_source(images)
    sampler = Sampler(len(folder.train), BATCH, 0, Augmentation())
    found: dict[str, Any] = {"images": sampler.count, "does_not": DOES_NOT[name]}
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(folder.train, sampler, threads, Path(scratch), device)
        started = time.perf_counter()
        if name in OURS:
            stream = _ours(name.split()[1], task)
            take(stream, sampler.batches_per_epoch, device)
            found["first_epoch"] = sampler.batches_per_epoch * BATCH / (time.perf_counter() - started)
        else:
            stream = _on(device, PEERS[name].batches(task))
        take(stream, WARM_UP, device)

        def work() -> int:
            take(stream, CHUNK, device)
            return CHUNK * BATCH

        before, started = _cpu_seconds(), time.perf_counter()
        found["rate"] = asdict(rates(work, seconds))
        found["busy"] = (_cpu_seconds() - before) / (time.perf_counter() - started)
    return found


def _ours(kind: Any, task: Task) -> Iterator[Any]:
    """Returns the batches of one of fastae's loaders."""
    import torch

    from fastae.data import Tuning, open_loader
    from fastae.utils.limits import keep_freed_memory

    if task.device == "cpu":
        keep_freed_memory()
        torch.set_num_threads(task.workers)
    return open_loader(
        task.paths,
        kind=kind,
        batch_size=BATCH,
        device=task.device,
        seed=0,
        tuning=Tuning(threads=task.workers),
        cache=task.scratch,
    ).batches()


def _on(device: str, stream: Iterator[Any]) -> Iterator[Any]:
    """Uploads the batches that are not on the device."""
    if device == "cpu":
        return stream
    import torch

    return (torch.as_tensor(batch).to(device, non_blocking=True) for batch in stream)


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and its worker processes so far."""
    import psutil

    from fastae.monitor.host import family

    times = [psutil.Process(pid).cpu_times() for pid in family(os.getpid())]
    return sum(each.user + each.system for each in times)


def measure_all(
    images: str | None, threads: int, seconds: float, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures every variant in a separate process; returns name -> result of `measure`."""
    common = {"images": images, "threads": threads, "seconds": seconds, "device": device}
    names = [name for name in DOES_NOT if name != "fastae host" or device != "cpu"]  # it is resident there
    return {name: isolated("benchmarks.loaders:measure", {"name": name, **common}, log) for name in names}


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the results as lines, with ratios to the fastest peer that decodes, and what differs."""
    measured = {name: Figure(**found["rate"]) for name, found in results.items() if "rate" in found}
    fastest = max(
        (
            figure.median
            for name, figure in measured.items()
            if name not in OURS and Work.DECODING not in results[name]["does_not"]
        ),
        default=None,
    )
    shown, letters = [], dict(zip(Work, "abcdefgh", strict=True))
    for name, found in results.items():
        if name not in measured:
            shown.append(f"  {name:20} absent: {found['absent']}")
            continue
        figure = measured[name]
        ratio = f"{figure.median / fastest:6.2f}x" if fastest else ""
        line = (
            f"  {name:20} {figure.median:9,.0f} images/s  ({figure.low:,.0f}-{figure.high:,.0f}){ratio:8}"
            f"  {found['busy']:4.1f} cores busy"
        )
        if found["does_not"]:
            line += f"  [{' '.join(letters[Work(work)] for work in found['does_not'])}]"
        if "first_epoch" in found:
            line += f"  first epoch with opening {found['first_epoch']:,.0f}"
        shown.append(line)
    differing = {work for found in results.values() for work in found.get("does_not", ())}
    shown += [f"    [{letter}] does not {work}" for work, letter in letters.items() if work in differing]
    return [*shown, "    x: compared with the fastest peer that decodes in every epoch"] if fastest else shown
