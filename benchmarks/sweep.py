"""DALI's knobs on this machine: images/s of the whole graph for each setting, the rest as it stands.

Sweeps the GPU's JPEG engine's share, CPU decoding with an upload, threads, prefetch depth and decoder
padding; on a CPU threads and prefetch alone. Each setting is read back from the pipeline that was
measured, so that none is swept in name only.

    python -m benchmarks.sweep [--images DIR] [--device cuda]
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from benchmarks.measure import Figure, rates
from fastae.augment import Augmentation
from fastae.data.crop_resize import CropResize
from fastae.data.sampler import Sampler
from fastae.data.source import open_source
from fastae.data.tuning import DEFAULT, Tuning

BATCH = 64
WARM_UP = 20


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    threads: int
    tuning: Tuning


def settings(on_gpu: bool, threads: int) -> list[Setting]:
    """The default, and every other with one knob turned."""
    base = Setting(threads, DEFAULT)
    points = [base]
    points += [replace(base, threads=number) for number in (1, 2, 4, 8, 16) if number not in (threads,)]
    points += [_tuned(base, prefetch=depth) for depth in (3, 4)]
    if on_gpu:
        points += [_tuned(base, hw_decoder_load=load) for load in (0.0, 0.25, 0.5, 0.8, 0.9, 1.0)]
        points += [_tuned(base, decode_on_cpu=True)]
        points += [_tuned(base, padding=size) for size in (0, 1 << 24)]
    return points


def _tuned(base: Setting, **change: Any) -> Setting:
    return replace(base, tuning=replace(base.tuning, **change))


def measure(setting: Setting, images: str | None, device: str, batches: int) -> Figure:
    """The whole graph's rate under one setting."""
    import torch

    from fastae.data.pipeline import DaliPipeline, build_augmented

    folder, _ = open_source(images)
    sampler = Sampler(len(folder.train), BATCH, 0, Augmentation())
    dali = DaliPipeline(torch.device(device), BATCH, setting.threads, setting.tuning)
    pipeline = build_augmented(folder.train, sampler.iterate(), CropResize(folder.side), dali)
    verify(pipeline, setting)
    stream = dali.run(pipeline)

    def work(number: int = batches) -> int:
        _take(stream, number)
        if device != "cpu":
            torch.cuda.synchronize()
        return number * BATCH

    work(WARM_UP)
    return rates(work)


def verify(pipeline: Any, setting: Setting) -> None:
    """Raises AssertionError unless the pipeline has the setting's values."""
    assert pipeline.num_threads == setting.threads, "threads"
    assert pipeline.prefetch_queue_depth == setting.tuning.prefetch, "prefetch"
    graph = pipeline.serialize()
    load = struct.pack("<f", setting.tuning.hw_decoder_load)
    written = graph.split(b"hw_decoder_load", 1)[1][:16]
    # Protocol buffers leave a zero out.
    assert load in written or setting.tuning.hw_decoder_load == 0, "hw_decoder_load"


def _take(stream: Iterator[Any], number: int) -> None:
    for _ in itertools.islice(stream, number):
        pass


@click.command(help=__doc__)
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the built-in synthetic faces.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--threads", default=8, show_default=True, help="CPU threads where they are not swept.")
@click.option("--batches", default=100, show_default=True, help="Batches a repeat.")
def main(images: str | None, device: str, threads: int, batches: int) -> None:
    for setting in settings(device != "cpu", threads):
        figure = measure(setting, images, device, batches)
        print(json.dumps({"setting": asdict(setting), "rate": asdict(figure)}), flush=True)


if __name__ == "__main__":
    main()
