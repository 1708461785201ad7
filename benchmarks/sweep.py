"""Measures the loader `dali` with one tuning setting changed at a time, in images/s.

It sweeps threads and prefetch depth; on a GPU also the JPEG engine's share, the batch that is decoded at
once, and decoder padding.

    python -m benchmarks.sweep [--images DIR] [--device cuda]
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import click

from benchmarks.measure import Figure, rates, take
from fastae.cli.options import PathType
from fastae.data import open_loader
from fastae.data.loaders.tuning import Tuning
from fastae.data.source import open_source
from fastae.errors import FastaeError

BATCH = 64
WARM_UP = 20


def settings(on_gpu: bool, threads: int) -> list[Tuning]:
    """Returns the default tuning, and tunings with one value changed."""
    base = Tuning(threads=threads)
    changes: list[dict] = [{"threads": number} for number in (1, 2, 4, 8, 12, 16) if number != threads]
    changes += [{"prefetch": depth} for depth in (3, 4)]
    if on_gpu:
        changes += [{"hw_decoder_load": load} for load in (0.0, 0.25, 0.5, 0.8, 0.9, 1.0)]
        changes += [{"decode_batch": number} for number in (64, 128, 512)]
        changes += [{"padding": size} for size in (0, 1 << 24)]
    return [base, *(replace(base, **change) for change in changes)]


def measure(tuning: Tuning, images: str | None, device: str, batches: int) -> Figure:
    """Measures the rate of `dali` with one tuning."""
    root = open_source(images)[0].root
    stream = open_loader(
        root, BATCH, split="train", kind="dali", device=device, seed=0, tuning=tuning
    ).batches()
    take(stream, WARM_UP, device)

    def work() -> int:
        take(stream, batches, device)
        return batches * BATCH

    return rates(work)


@click.command(help=__doc__)
@click.option(
    "--images",
    metavar="DIR",
    type=PathType(str),
    help="Default: $FASTAE_DATA, else the built-in synthetic faces.",
)
@click.option("--device", default="cuda", show_default=True)
@click.option("--threads", default=8, show_default=True, help="CPU threads if they are not swept.")
@click.option("--batches", default=100, show_default=True, help="Batches per repeat.")
def main(images: str | None, device: str, threads: int, batches: int) -> None:
    try:
        for tuning in settings(device != "cpu", threads):
            figure = measure(tuning, images, device, batches)
            print(json.dumps({"setting": asdict(tuning), "rate": asdict(figure)}), flush=True)
    except FastaeError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
