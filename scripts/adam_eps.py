"""Counts how much Adam's eps weighs in each layer: eps / (k sqrt(v)), the answer to what reductions change.

    python -m scripts.adam_eps CELEBA OUT

trains `minibatch_bce` and `minibatch_mse` in the folder OUT as `scripts.sweep_with_control` does with seed 0,
and counts in the checkpoints of four iterations. It writes the counts to OUT/adam-eps.csv; docs/results has a
copy. If it is stopped, the same command resumes it. What the CSV has already is not counted again: with the
CSV and the sweep's own runs in OUT, only their last iteration is. The reductions of an element have the same
gradients except for the factor k (`fastae.experiment.losses`), so v is counted once for the three of them,
with k = 1.

A row counts the weights of a layer whose log10(eps / sqrt(v)) is in [low, low + BIN). A weight that has never
had a gradient does not move, whatever eps is: it is counted in the row whose `low` is inf.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import numpy as np
from torch import Tensor

from fastae.errors import FastaeError, Stopped
from fastae.experiment.adam import EPSILON
from fastae.experiment.losses import ELEMENTS, LOSSES, Loss
from fastae.report.figures import HEIGHT, INK, SETTINGS, WIDTH, svg
from fastae.report.tables import Cell, Row, Table
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.training.resume import resume
from fastae.training.runner import train
from fastae.training.session import batch_shape
from fastae.utils.console import log
from fastae.utils.files import atomic_write
from fastae.utils.plotting import import_matplotlib
from scripts.sweep_with_control import settings

ITERATIONS = (1, 100, 1_000, 2_000)
BIN = 0.25
"""The width of a bin, in powers of ten."""

SHOWN = -6, 2
"""The powers of ten that the figure shows. Hardly any weights are outside."""

DARKEST = 0.4
"""The share of weights from which on a cell has the darkest shade."""

LIMIT = 0.01
"""The ratio eps / (k sqrt(v)) from which on eps matters. A step is divided by 1 + this ratio."""

Counts = dict[tuple[str, int], dict[str, dict[float, int]]]
"""(element, iteration) -> layer -> low -> weights."""

HEAD = ("element", "iteration", "layer", "low", "weights")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(data: Path, out: Path) -> None:
    """Train on the images in DATA, and count in the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    counts = out / "adam-eps.csv"
    if not counts.exists():
        append(counts, [HEAD])
    done = read_counts(counts).keys()
    try:
        for iteration, element in product(ITERATIONS, [each.name for each in ELEMENTS]):
            if (element, iteration) not in done:
                append(counts, measured(data, element, iteration, out / f"minibatch_{element}"))
    except (FastaeError, Stopped) as error:
        raise click.UsageError(str(error)) from None


def append(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Appends rows to a CSV file, all or none."""
    before = path.read_bytes() if path.exists() else b""
    with atomic_write(path) as file:
        file.write(before + "".join(f"{','.join(map(str, row))}\n" for row in rows).encode())


def measured(
    data: Path, element: str, iteration: int, run: Path
) -> Iterator[tuple[str, int, str, float, int]]:
    """Trains a run to an iteration, and yields the rows of its checkpoint."""
    if not RunFolder(run).config_file.exists():
        config = replace(settings(data), loss=f"minibatch_{element}", out=str(run), eval_images=64)
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


def read_counts(path: Path) -> Counts:
    """Reads the file that this script writes."""
    counts: Counts = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            layers = counts.setdefault((row["element"], int(row["iteration"])), {})
            layers.setdefault(row["layer"], {})[float(row["low"])] = int(row["weights"])
    return counts


def draw(counts: Counts) -> bytes:
    """Draws the counts as SVG: a panel per element and iteration, a row of shades per layer."""
    elements, iterations = (list(dict.fromkeys(each)) for each in zip(*counts, strict=True))
    lows = [low for layers in counts.values() for row in layers.values() for low in row if np.isfinite(low)]
    edges = np.arange(min(lows), max(lows) + 1.5 * BIN, BIN)
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(2 * WIDTH, 2 * HEIGHT), dpi=96, layout="constrained")
        panels = figure.subplots(len(elements), len(iterations), sharex=True, sharey=True, squeeze=False)
        for (element, iteration), layers in counts.items():
            axes = panels[elements.index(element), iterations.index(iteration)]
            names = sorted(layers, key=_depth)
            shares = np.array([_shares(layers[name], edges) for name in names])
            cells = edges, np.arange(len(layers) + 1), shares
            shades = axes.pcolormesh(*cells, cmap="Blues", vmin=0, vmax=DARKEST, rasterized=True)
            for share in (1, LIMIT):
                axes.axvline(np.log10(share), color=INK, linewidth=0.8)
                axes.text(np.log10(share), -0.1, f"{100 * share:g} %", ha="center", va="bottom", fontsize=8)
            axes.set_yticks(np.arange(len(layers)) + 0.5, names, fontsize=8)
            axes.set_title(f"{element}, iteration {iteration:,}", fontsize=9, pad=14)
            axes.set(xlim=SHOWN, ylim=(len(layers), 0), xticks=range(SHOWN[0] + 2, SHOWN[1], 2))
        label = "share of a layer's weights in a bin"
        figure.colorbar(shades, ax=panels, label=label, extend="max", fraction=0.03, pad=0.01)
        figure.supylabel("layer, from image to reconstruction")
        sample, pixel = (np.log10(scale_of(LOSSES[f"{name}_mse"])) for name in ("sample", "pixel"))
        figure.supxlabel(
            f"log₁₀ of eps / √v for minibatch; sample is {sample:.1f} and pixel {pixel:.1f} to the left"
        )
        return svg(figure)


def table(counts: Counts) -> Table:
    """Returns the share of weights for which the ratio exceeds LIMIT, by loss and iteration."""
    iterations = list(dict.fromkeys(iteration for _, iteration in counts))
    rows = []
    for loss in LOSSES.values():
        found = [counts.get((loss.element.name, iteration)) for iteration in iterations]
        if any(found):
            shares = [f"{share_shortened(each, scale_of(loss)):.2%}" if each else "" for each in found]
            rows.append(Row([Cell(loss.name), *map(Cell, shares)]))
    return Table(["loss", *(f"iteration {iteration:,}" for iteration in iterations)], rows)


def scale_of(loss: Loss) -> int:
    """Returns a loss's k in these runs."""
    return loss.gradient_scale(batch_shape(settings(Path())))


def share_shortened(layers: Mapping[str, Mapping[float, int]], scale: float) -> float:
    """Returns the share of the weights that have had a gradient for which eps / (scale sqrt(v)) exceeds 1 %.

    A bin that contains the limit counts by the part of its width that is above the limit.
    """
    limit = np.log10(LIMIT * scale)
    counted = [(low, weights) for row in layers.values() for low, weights in row.items() if np.isfinite(low)]
    above = sum(weights * min(1.0, max(0.0, (low + BIN - limit) / BIN)) for low, weights in counted)
    return above / sum(weights for _, weights in counted)


def _depth(layer: str) -> tuple[bool, int]:
    """Sorts the layers from the images to the reconstructions."""
    part, _, number = layer.partition(".")
    return part == "decoder", int(number)


def _shares(counts: dict[float, int], edges: np.ndarray) -> np.ndarray:
    """Returns the share of a layer's weights in each bin, without those that have had no gradient."""
    values = np.array([counts.get(round(low / BIN) * BIN, 0) for low in edges[:-1]], float)
    return values / max(values.sum(), 1)


if __name__ == "__main__":
    main()
