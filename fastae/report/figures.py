"""The report's figures, each drawn once: curves as SVG on a transparent ground, rows of images as PNG.

Hue is the reduction (Okabe and Ito's palette, which colour-blind readers can tell apart), dashes are the
element. On a dark page the style sheet inverts a chart's lightness.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastae.report.runs import Series
from fastae.utils.pictures import encode_png
from fastae.utils.plotting import import_matplotlib

SMOOTHING = 0.95
"""The article's, as TensorBoard does it."""

INK, GRID = "#3d434b", "#d9dce1"
HUES = {"minibatch": "#0072b2", "pixel": "#d55e00", "sample": "#009e73"}
DASHES: dict[str, Any] = {"bce": "-", "mse": (0, (3, 1.4))}
WIDTHS = {"minibatch": 3.4, "pixel": 2.2, "sample": 1.1}
"""In points. Where lines coincide, the thinner lies on the thicker and both are seen."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT = 5.6, 3.6
"""Inches: small, so that the text stays readable when a phone shrinks the figure to its width."""

FEW = 60
"""Curves of fewer points have a marker at each."""

PIXELS = 128
"""The least side at which an image is shown: smaller ones are enlarged."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and has the page's fonts
    "svg.hashsalt": "fastae",  # the same figure is the same file
    "path.simplify_threshold": 1.0,  # a million noisy points take 30 kB
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_curves(curves: Sequence[tuple[str, Series]], smoothing: float = 0.0) -> bytes:
    """An SVG of loss_index by iteration on a logarithmic axis. curves: the loss and the values of each run.

    smoothing: TensorBoard's, with the raw curve faint behind it; 0 draws the values themselves.
    """
    matplotlib = import_matplotlib()
    number = matplotlib.ticker.FuncFormatter(short)
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(WIDTH, HEIGHT), dpi=96, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        named: set[str] = set()
        for loss, series in curves:
            _draw_curve(axes, loss, series, smoothing, is_first=loss not in named)
            named.add(loss)
        axes.set_xlabel("iteration")
        axes.set_xlim(0, max((int(series.steps[-1]) for _, series in curves if len(series)), default=1) or 1)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(number)
        if any((series.finite().values > 0).any() for _, series in curves):
            _scale_log(axes, matplotlib.ticker)
        axes.yaxis.set_major_formatter(number)
        if len(named) > 1:
            figure.legend(
                loc="outside lower center", ncols=min(3, len(named)), frameon=False, handlelength=2.2
            )
        return _svg(figure)


def smooth(values: np.ndarray, weight: float = SMOOTHING) -> np.ndarray:
    """An exponential moving average, (n,), as TensorBoard's scalar chart draws it.

    s = weight * s + (1 - weight) * value from s = 0, shown as s / (1 - weight^n) for the n-th value. Values
    that are not finite are kept and not averaged; a constant series is left alone.
    """
    smoothed = values.astype(np.float64)
    if (values == values[:1]).all():
        return smoothed
    average = 0.0
    for count, place in enumerate(np.flatnonzero(np.isfinite(values)), start=1):
        average = weight * average + (1 - weight) * values[place]
        smoothed[place] = average / (1 - weight**count)
    return smoothed


def short(value: float, _: object = None) -> str:
    """To three digits: 1,234,000 -> "1.23 M", 40,000 -> "40 k"."""
    for size, unit in ((1e6, "\u00a0M"), (1e3, "\u00a0k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def draw_strips(rows: Sequence[np.ndarray]) -> bytes:
    """A PNG of rows of pictures, each uint8 (L, S, S, 3), side by side with transparent gaps."""
    return encode_png(np.concatenate(list(map(_strip, rows))))


def _draw_curve(axes: Any, loss: str, series: Series, smoothing: float, is_first: bool) -> None:
    """is_first: further seeds of a loss are thin, and not in the legend."""
    reduction, element = loss.split("_")
    style: dict[str, Any] = {"color": HUES[reduction], "linestyle": DASHES[element]}
    style["linewidth"] = WIDTHS[reduction] if is_first else 0.8
    values = series.values
    if smoothing:
        axes.plot(series.steps, values, color=HUES[reduction], linewidth=0.8, alpha=0.3, zorder=1)
        values = smooth(values, smoothing)
    if len(series) < FEW and not smoothing:
        style |= {"marker": "o", "markersize": 4, "clip_on": False}
    axes.plot(series.steps, values, label=loss if is_first else "_", **style)


def _scale_log(axes: Any, ticker: Any) -> None:
    """ticker: the module matplotlib.ticker."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    decades = np.log10(high) - np.log10(low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.tick_params(which="minor", length=0)


def _strip(pictures: np.ndarray) -> np.ndarray:
    """uint8 (L, S, S, 3) -> (S, W, 4)."""
    scale = -(-PIXELS // pictures.shape[1])
    pictures = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    opaque = np.concatenate([pictures, np.full_like(pictures[..., :1], 255)], axis=-1)
    return np.concatenate(list(np.pad(opaque, ((0, 0), (0, 0), (2, 2), (0, 0)))), axis=1)


def _svg(figure: Any) -> bytes:
    """The figure without a prologue, which would name addresses on the web."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    written = file.getvalue().decode()
    return written[written.index("<svg") :].replace("'DejaVu Sans'", FONTS).encode()
