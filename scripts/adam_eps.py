"""Counts how much Adam's eps weighs in each layer: eps / (k sqrt(v)), the answer to what reductions change.

    python -m scripts.adam_eps CELEBA docs/results/adam-eps.csv

trains `minibatch_bce` and `minibatch_mse` as `scripts.sweep_with_control` does with seed 0, and reads the
checkpoints of four iterations. The reductions of an element have the same gradients but for the factor k
(`fastae.experiment.losses`), so v is counted once for the three of them, with k = 1.

A row counts the weights of a layer whose log10(eps / sqrt(v)) is in [low, low + BIN). A weight that has never
had a gradient does not move, whatever eps is: it is counted in the row whose `low` is inf.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from torch import Tensor

from fastae.errors import FastaeError
from fastae.experiment.adam import EPSILON
from fastae.experiment.losses import ELEMENTS
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.training.resume import resume
from fastae.training.runner import train
from fastae.utils.console import log
from fastae.utils.files import atomic_write
from scripts.sweep_with_control import settings

ITERATIONS = (1, 100, 1_000, 2_000)
BIN = 0.25
"""The width of a bin, in powers of ten."""

HEAD = ("element", "iteration", "layer", "low", "weights")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(data: Path, out: Path) -> None:
    """Train on the images in DATA, and write the counts to the CSV file OUT."""
    try:
        rows = [row for element in ELEMENTS for row in measured(data, element.name)]
    except FastaeError as error:
        raise click.UsageError(str(error)) from None
    with atomic_write(out) as file:
        file.write("".join(f"{','.join(map(str, row))}\n" for row in (HEAD, *rows)).encode())


def measured(data: Path, element: str) -> Iterator[tuple[str, int, str, float, int]]:
    """Yields the rows of an element."""
    with TemporaryDirectory(prefix="fastae-") as folder:
        run = Path(folder) / element
        config = replace(settings(data), loss=f"minibatch_{element}", out=str(run), eval_images=64)
        for iteration in ITERATIONS:
            if iteration == ITERATIONS[0]:
                train(replace(config, iterations=iteration))
            else:
                resume(run, iterations=iteration)
            newest = checkpoint.newest(RunFolder(run).checkpoints, log)
            assert newest and newest.iteration == iteration
            for layer, square in newest.training.square.items():
                if square.ndim > 1:  # not the biases and batch norms, which are few
                    for low, count in counted(square):
                        yield element, iteration, layer.removesuffix(".weight"), low, count


def counted(square: Tensor) -> Iterator[tuple[float, int]]:
    """Yields the lower end of each bin that is not empty, and the number of a layer's weights in it."""
    v = square.double().numpy()
    powers = np.log10(EPSILON) - np.log10(v[v > 0]) / 2
    lows, counts = np.unique(np.floor(powers / BIN) * BIN, return_counts=True)
    yield from zip(lows.tolist(), counts.tolist(), strict=True)
    if still := int((v == 0).sum()):
        yield float("inf"), still


def read_counts(path: Path) -> list[dict[str, str]]:
    """Returns the rows of the file that this script writes."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
