"""Draws the report's charts: curves as SVG on a white background.

Curves may coincide, since the gradients of an element's reductions differ by a constant factor only. So the
hue of a curve shows the element. Its width, shade and marker show the reduction, also where a narrower curve
covers it, and the reductions of an element have their markers at different iterations.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, product
from typing import Any, NamedTuple

import numpy as np
from scipy import signal

from fastae.experiment.article import SMOOTHING
from fastae.experiment.losses import OWN_SHADES, REDUCTIONS, Loss
from fastae.report.compare import Group
from fastae.report.runs import Run, Series
from fastae.utils.plotting import import_matplotlib

UNSMOOTHED = 100
"""The most points of a curve that is not smoothed. The article's 2,000 points are smoothed by SMOOTHING."""

PAPER, INK, GRID = "white", "#3d434b", "#d9dce1"
MARKED = 8
"""The approximate number of a curve's points that have a marker."""

FURTHER_COLORS = ("#009e73", "#cc79a7", "#6f4fa3", "#b5a400", "#56b4e9", "#8a8f98")
FURTHER_WIDTH = 1.8
"""The styles of further curves of a loss, and of reductions without a shade.

They have all colors, and then all with the next of DASHES.
"""

DASHES = ("-", "--", ":", "-.")

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT, LEGEND_LINE = 5.6, 3.6, 0.2
"""The size in inches. It is small, so that the text is readable when a phone shrinks the figure to its width.

HEIGHT includes two lines of legend.
"""

TICK_STEPS = (1, 2, 2.5, 5, 10)
"""The distances between ticks, times a power of ten."""

LEGEND_CHARACTERS = 60
"""The number of characters that fit into a line of the legend, beside the samples of the curves."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "svg.fonttype": "none",  # text stays searchable text, in the page's fonts
    "svg.hashsalt": "fastae",  # equal figures are equal files
    "text.parse_math": False,  # a folder's name may contain dollar signs
    "path.simplify_threshold": 1.0,  # a million noisy points take 30 kB
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Curve:
    """The logged values of one or more seeds of a loss."""

    loss: Loss

    label: str
    """The text in the legend."""

    steps: np.ndarray
    """The iterations at which all seeds have a value, int64 (n,)."""

    values: np.ndarray
    """The values of each seed at `steps`, float64 (seeds, n)."""

    weight: float = 0.0
    """The weight for `smooth`. If it is not 0, the values are drawn faint behind."""

    @cached_property
    def drawn(self) -> np.ndarray:
        """`values` after smoothing."""
        return np.stack([smooth(seed, self.weight) for seed in self.values])

    @property
    def mean(self) -> np.ndarray:
        """The line that is drawn: the mean over the seeds, (n,)."""
        return self.drawn.mean(axis=0)

    def since(self, iteration: int) -> Curve:
        """Returns the part of the curve from an iteration on."""
        kept = self.steps >= iteration
        return replace(self, steps=self.steps[kept], values=self.values[:, kept])


class Chart(NamedTuple):
    """A figure with curves."""

    name: str
    """The name of its file, without a suffix."""

    title: str

    alt: str
    """A description for readers who cannot see it."""

    svg: bytes


def draw_charts(groups: Sequence[Group]) -> list[Chart]:
    """Draws the charts that have data.

    They are the article's first figure (training batches), held-out images, and the second half of the
    latter, which shows differences better.
    """
    train = _curves(groups, lambda run: run.train, is_smoothed=True)
    held_out = _curves(groups, lambda run: run.held_out)
    half = max((int(curve.steps[-1]) for curve in held_out if len(curve.steps)), default=0) // 2
    later = [curve for curve in (whole.since(half) for whole in held_out) if len(curve.steps) > 2]
    weight = max((curve.weight for curve in train), default=0.0)
    charts = [
        ("train", f"Training batches{f', smoothed by up to {weight:.2g}' if weight else ''}", train),
        ("held-out", "Held-out images", held_out),
        ("held-out-later", f"Held-out images from iteration {half:,} on", later if len(later) > 1 else []),
    ]
    return [
        Chart(name, title, f"{title}: squared error × 10⁷ by iteration", draw_curves(curves))
        for name, title, curves in charts
        if curves
    ]


def _curves(
    groups: Sequence[Group], series: Callable[[Run], Series], is_smoothed: bool = False
) -> list[Curve]:
    """Makes the curve of each group, over the seeds that have logged finite values."""
    curves = []
    for group in groups:
        if seeds := [
            logged for logged in map(series, group.runs) if any(map(math.isfinite, logged.values()))
        ]:
            steps = sorted(set.intersection(*map(set, seeds)))
            values = np.array([[logged[step] for step in steps] for logged in seeds])
            weight = smoothing_weight(len(steps)) if is_smoothed else 0.0
            at = np.array(steps, int)
            curves.append(Curve(group.loss, group.label, steps=at, values=values, weight=weight))
    return curves


def draw_curves(curves: Sequence[Curve]) -> bytes:
    """Draws loss_index by iteration on a logarithmic axis as SVG, with a legend if there are several curves.

    The curve of several seeds is their mean, with a band from the lowest to the highest.
    """
    matplotlib = import_matplotlib()
    labels = [textwrap.fill(curve.label, LEGEND_CHARACTERS, break_on_hyphens=False) for curve in curves]
    columns = max(1, min(3, LEGEND_CHARACTERS // (3 + max(map(len, labels)))))
    lines = sum(1 + label.count("\n") for label in labels) / columns
    with matplotlib.rc_context(SETTINGS):
        height = HEIGHT + LEGEND_LINE * max(0, lines - 2)
        figure = matplotlib.figure.Figure(figsize=(WIDTH, height), dpi=96, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        for curve, style, label in zip(curves, styles(curves), labels, strict=True):
            _draw_curve(axes, curve, label, style=style)
        axes.set_xlabel("iteration")
        axes.set_ylabel("mean squared error × 10⁷")
        steps = np.concatenate([curve.steps for curve in curves])
        if len(steps):
            axes.set_xlim(steps.min(), max(steps.max(), steps.min() + 1))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if any((np.isfinite(curve.values) & (curve.values > 0)).any() for curve in curves):
            _scale_log(axes, matplotlib.ticker)
        axes.yaxis.set_major_formatter(short)
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)
        return svg(figure)


def smoothing_weight(points: int) -> float:
    """Returns the weight for a curve of `points` points: 1 - 100 / points, from 0 to 0.95.

    A weight w averages over about 1 / (1 - w) points, which is a hundredth of the curve, and 20 points at
    most. TensorBoard's constant 0.95 would draw a curve of twenty falling points far above all of them.
    """
    return min(SMOOTHING, max(0.0, 1 - UNSMOOTHED / points)) if points else 0.0


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Returns the exponential moving average of values (n,), as TensorBoard's scalar chart shows it.

    s = weight * s + (1 - weight) * value from s = 0, and the result is s / (1 - weight^n) for the n-th value.
    Values that are not finite are kept, and not averaged. With weight 0 no value is changed.
    """
    smoothed, known = values.astype(np.float64), np.isfinite(values)
    average = signal.lfilter([1 - weight], [1, -weight], values[known])
    smoothed[known] = average / (1 - weight ** np.arange(1, len(average) + 1))
    return smoothed


def short(value: float, _: object = None) -> str:
    """Returns a number in three digits: "1.23 M" for 1,234,000, "40 k" for 40,000."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _draw_curve(axes: Any, curve: Curve, label: str, style: dict[str, Any]) -> None:
    """Draws a curve, over its band and its raw values."""
    steps, drawn = curve.steps, curve.drawn
    if curve.weight:
        raw = curve.values.mean(axis=0)
        axes.plot(steps, raw, color=style["color"], linewidth=0.8, alpha=0.3, zorder=1)
    if len(drawn) > 1:
        low, high = drawn.min(axis=0), drawn.max(axis=0)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
    axes.plot(steps, curve.mean, **style | {"linestyle": "none", "zorder": 3})  # markers over other lines
    axes.plot(steps, curve.mean, label=label, **style)


def styles(curves: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    """Yields the style of each curve.

    All differ, unless there are more than 24 further curves, or 20 elements without their own colors.
    """
    further = cycle(product(DASHES, FURTHER_COLORS))
    palettes = cycle(product(DASHES, OWN_SHADES))
    chosen: dict[str, tuple[str, Mapping[str, str]]] = {}
    drawn: list[Loss] = []
    for curve in curves:
        element, reduction = curve.loss.element, curve.loss.reduction
        if element.name not in chosen:
            chosen[element.name] = (DASHES[0], element.shades) if element.shades else next(palettes)
        dashes, shades = chosen[element.name]
        color, width = shades.get(reduction.name), reduction.width
        if color is None or curve.loss in drawn:
            dashes, color = next(further)
            width = FURTHER_WIDTH
        face, edge = (color, PAPER) if element.filled else (PAPER, color)
        first = sum(loss.element == element for loss in drawn)
        yield {
            "color": color, "linestyle": dashes, "linewidth": width, "marker": reduction.marker,
            "markersize": 6, "markerfacecolor": face, "markeredgecolor": edge, "clip_on": False,
            "markevery": marked_points(len(curve.steps), first),
        }  # fmt: skip
        drawn.append(curve.loss)


def marked_points(points: int, index: int) -> tuple[int, int]:
    """Returns the index of a curve's first point with a marker, and the distance to the next one.

    If the curves of an element have the same points, as many in succession as there are reductions have
    their markers at different ones. `index` counts an element's curves.
    """
    count = len(REDUCTIONS)
    distance = max(min(points, count), points // MARKED, 1)
    return index * distance // count % distance, distance


def _scale_log(axes: Any, ticker: Any) -> None:
    """Makes the y axis logarithmic, with several ticks at any range; `ticker` is matplotlib.ticker."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    decades = np.log10(high) - np.log10(low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    locator = ticker.MaxNLocator(5, steps=TICK_STEPS) if decades < 0.5 else ticker.LogLocator(subs=subs)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.tick_params(which="minor", length=0)


def svg(figure: Any) -> bytes:
    """Returns the figure as SVG, without the XML prologue, which contains web addresses."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    written = file.getvalue().decode()
    return written[written.index("<svg") :].replace("'DejaVu Sans'", FONTS).encode()
