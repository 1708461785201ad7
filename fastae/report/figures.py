"""The report's figures, each drawn once: curves as SVG on a transparent ground, rows of images as PNG.

Hue is the reduction (Okabe and Ito's, which colour-blind readers tell apart), dashes are the element. On a
dark page the style sheet inverts a chart's lightness.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from fastae.report.quality import Gallery, Row
from fastae.report.runs import Series

SMOOTHING = 0.95
"""The article's, as TensorBoard does it."""

INK, GRID = "#3d434b", "#d9dce1"
HUES = {"minibatch": "#0072b2", "pixel": "#d55e00", "sample": "#009e73"}
DASHES: dict[str, Any] = {"bce": "-", "mse": (0, (3, 1.4))}
WIDTHS = {"minibatch": 3.4, "pixel": 2.2, "sample": 1.1}
"""In points. Where lines coincide, the thinner lies on the thicker and both are seen."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT = 5.6, 3.6
"""Inches. Small, so that a phone, which shrinks it to its width, leaves the text readable."""

POINTS = 250
"""Of a curve, each the lowest and the highest of a stretch: there are no more pixels than that."""

FEW = 60
"""Points of a curve below which each is marked."""

PIXELS = 128
"""The least side of an image that is shown: smaller ones are enlarged."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and has the page's fonts
    "svg.hashsalt": "fastae",  # the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_curves(curves: Sequence[tuple[str, Series]], smoothing: float = 0.0) -> bytes:
    """An SVG of loss_index by iteration on a logarithmic axis; curves: (loss, values) of each run.

    smoothing: TensorBoard's, the raw curve faint behind it; 0 draws the values themselves.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=96, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        named: set[str] = set()
        for loss, series in curves:
            _draw_curve(axes, loss, series, smoothing, "" if loss in named else loss)
            named.add(loss)
        axes.set_xlabel("iteration")
        axes.set_xlim(0, max((int(series.steps[-1]) for _, series in curves if len(series)), default=1) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        if any((series.finite().values > 0).any() for _, series in curves):
            axes.set_yscale("log", nonpositive="mask")
            _log_ticks(axes)
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        if len(named) > 1:
            figure.legend(
                loc="outside lower center", ncols=min(3, len(named)), frameon=False, handlelength=2.2
            )
        return _svg(figure)


def smooth(values: np.ndarray, weight: float = SMOOTHING) -> np.ndarray:
    """TensorBoard's smoothing: an exponential moving average, divided by the weight that it has gathered.

    As its scalar chart does: s = weight * s + (1 - weight) * value from s = 0, shown as
    s / (1 - weight^n) for the n-th value; values that are no number are shown as they are and not averaged;
    a constant series is left alone.
    """
    constant = len(values) > 0 and bool((values == values[0]).all())
    smoothed = np.array(values, dtype=np.float64)
    average, count = 0.0, 0
    for place, value in enumerate(smoothed):
        if constant or not np.isfinite(value):
            continue
        average = weight * average + (1 - weight) * value
        count += 1
        smoothed[place] = average / (1 - weight**count)
    return smoothed


def thin(series: Series) -> Series:
    """At most 2 * POINTS points that draw the same noisy line: each stretch's lowest and highest.

    One with values that are no number, at which the line breaks, is left as it is.
    """
    if len(series) <= 2 * POINTS or not np.isfinite(series.values).all():
        return series
    kept = sorted(
        {
            int(stretch[place])
            for stretch in np.array_split(np.arange(len(series)), POINTS)
            for place in (series.values[stretch].argmin(), series.values[stretch].argmax())
        }
    )
    return Series(series.steps[kept], series.values[kept])


def short(value: float, _: object = None) -> str:
    """To three digits: 1,234,000 -> "1.23 M", 40,000 -> "40 k"."""
    for size, unit in ((1e6, "\u00a0M"), (1e3, "\u00a0k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def draw_strip(row: Row) -> bytes:
    """A PNG of the original and its reconstructions side by side, with transparent gaps."""
    return _png(_strip(row))


def draw_gallery(gallery: Gallery) -> bytes:
    """A PNG of all rows of a gallery."""
    return _png(np.concatenate([_strip(row) for rows in gallery.groups.values() for row in rows]))


def _draw_curve(axes: Axes, loss: str, series: Series, smoothing: float, label: str) -> None:
    reduction, element = loss.split("_")
    style: dict[str, Any] = {"color": HUES[reduction], "linestyle": DASHES[element]}
    style["linewidth"] = WIDTHS[reduction] if label else 0.8
    if smoothing:
        raw = thin(series)
        axes.plot(raw.steps, raw.values, color=HUES[reduction], linewidth=0.6, alpha=0.25, zorder=1)
        series = Series(series.steps, smooth(series.values, smoothing))
    series = thin(series)
    marker = "o" if len(series) < FEW and not smoothing else ""
    axes.plot(series.steps, series.values, marker=marker, markersize=4, label=label or "_", **style)


def _log_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    decades = np.log10(high) - np.log10(low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _strip(row: Row) -> np.ndarray:
    """uint8 (S, W, 4)."""
    scale = -(-PIXELS // row.pictures.shape[1])
    pictures = row.pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    opaque = np.concatenate([pictures, np.full_like(pictures[..., :1], 255)], axis=-1)
    return np.concatenate(list(np.pad(opaque, ((0, 0), (0, 0), (2, 2), (0, 0)))), axis=1)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    """Without the prologue, which names addresses that nobody needs to look up."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    written = file.getvalue().decode()
    return written[written.index("<svg") :].replace("'DejaVu Sans'", FONTS).encode()
