"""The report's figures: curves as SVG, once for a light page and once for a dark one, and images as PNG.

Backgrounds are transparent. Hue is the reduction, the line's dashes are the element: three hues that colour-
blind readers tell apart (Okabe and Ito's), and each line is named at its end.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from fastae.report.curves import Series, smooth
from fastae.report.gallery import Row
from fastae.report.gather import Run


@dataclass(frozen=True)
class Theme:
    name: str
    ink: str
    muted: str
    grid: str
    hues: Mapping[str, str]


LIGHT = Theme(
    "light", "#1f2328", "#5b626b", "#d9dce1",
    {"minibatch": "#0072b2", "pixel": "#c65102", "sample": "#00805f"},
)  # fmt: skip
DARK = Theme(
    "dark", "#e9e7e2", "#a3a9b2", "#3a3f46",
    {"minibatch": "#62b5ee", "pixel": "#f0a04b", "sample": "#3fcfa4"},
)  # fmt: skip
THEMES = (LIGHT, DARK)

DASHES: Mapping[str, str | tuple[int, tuple[float, ...]]] = {"bce": "-", "mse": (0, (3, 1.4))}

WIDTHS = {"minibatch": 3.4, "pixel": 2.2, "sample": 1.1}
"""In points. Where lines coincide, the thinner lies on the thicker and both are seen."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT, DPI = 5.6, 3.9, 96
"""Inches. Small, so that a phone, which shrinks it to its width, leaves the text readable."""

FONT_SIZE = 9.5
LABEL_ROOM = 0.28
"""Of the width, right of the axes, for the names of the lines."""

LINE_SPACING = 0.066
"""Of the axes' height, between two names."""

STRETCHES = 250
"""Of a curve, each drawn by its lowest and its highest point: there are no more pixels than that."""

START_SHARE = 0.02
"""The first part of a long curve, which a linear axis lets run out at the top: it would squeeze the rest."""

LONG_CURVE = 60
"""Points from which a curve is long: shorter ones are shown whole, with a dot at each point."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "svg.fonttype": "none",  # text stays text: it can be searched, and has the page's fonts
    "svg.hashsalt": "fastae",  # the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """What is drawn of one run. label: of its loss, at the end of the line; empty for a further seed's."""

    loss: str
    label: str
    series: Series


def curves(runs: Sequence[Run], series_of: Callable[[Run], Series]) -> list[Curve]:
    """A curve for each run that has any value, one label a loss."""
    found: list[Curve] = []
    labelled: set[str] = set()
    for run in runs:
        series = series_of(run)
        if len(series.finite()):
            found.append(Curve(run.loss, "" if run.loss in labelled else name_of(run.loss), series))
            labelled.add(run.loss)
    return found


def draw_curves(
    drawn: Sequence[Curve],
    theme: Theme,
    *,
    y: str,
    log: bool = False,
    smoothing: float = 0.0,
    zero: bool = False,
) -> bytes:
    """An SVG of values against iterations.

    smoothing: 0 draws the values themselves, with a dot at each; else TensorBoard's, the raw curve behind it.
    zero: values are in percent around 0, which is drawn.
    """
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(theme, HEIGHT)
        for curve in drawn:
            _draw_curve(axes, curve, theme, smoothing)
        axes.set_xlabel("iteration")
        axes.set_xlim(0, max((int(curve.series.steps[-1]) for curve in drawn), default=1) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.set_title(y, loc="left", fontsize=FONT_SIZE, color=theme.muted, pad=9)
        if zero:
            axes.axhline(0, color=theme.muted, linewidth=0.8)
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:+.3g} %" if value else "0")
            )
        elif log and any((curve.series.values > 0).any() for curve in drawn):
            axes.set_yscale("log")
            _log_ticks(axes)
        else:
            axes.set_ylim(0, _top(drawn, smoothing))
            axes.yaxis.set_major_formatter(FuncFormatter(short))
        _label_ends(axes, drawn, theme, smoothing)
        return _svg(figure)


def draw_bars(names: Sequence[str], parts: Mapping[str, Sequence[float]], theme: Theme, *, x: str) -> bytes:
    """An SVG of horizontal bars, each of parts in [0, 1] that add up to 1; `parts` by name, (len(names),)."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(theme, 1.0 + 0.27 * len(names), label_room=0.045, left=0.29)
        left = np.zeros(len(names))
        places = np.arange(len(names))
        shades = _shades(theme)
        for shade, (part, values) in zip(shades, parts.items(), strict=False):
            axes.barh(places, 100 * np.array(values), left=left, height=0.62, color=shade, label=part)
            left += 100 * np.array(values)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(x)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        legend = figure.legend(
            loc="upper center", ncols=len(parts), frameon=False, fontsize=FONT_SIZE - 1,
            handlelength=0.9, handleheight=0.9, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_color(theme.ink)
        return _svg(figure)


def draw_strip(row: Row) -> bytes:
    """A PNG of the original and the reconstructions side by side, with transparent gaps."""
    return png(_strip(row.pictures))


def draw_gallery(losses: Sequence[str], groups: Mapping[str, Sequence[Row]]) -> bytes:
    """A PNG of every row of a gallery under the names of its columns, on white."""
    rows = [(kind, row) for kind, rows in groups.items() for row in rows]
    aspect = rows[0][1].pictures.shape[2] / rows[0][1].pictures.shape[1]
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        columns = 1 + len(losses)
        figure = Figure(figsize=(1.28 * columns + 0.9, 0.6 + 1.28 * len(rows)), dpi=100, facecolor="white")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        width, height = figure.get_size_inches()
        figure.subplots_adjust(0.9 / width, 0, 1, 1 - 0.6 / height, 0.03, 0.03)
        for line, (kind, row) in enumerate(rows):
            for column, picture in enumerate(row.pictures):
                axes = grid[line, column]
                axes.imshow(picture, interpolation="nearest", aspect=aspect)
                axes.set_axis_off()
            first = grid[line, 0]
            first.text(-0.06, 0.5, kind, transform=first.transAxes, ha="right", va="center", fontsize=9)
        for axes, name in zip(grid[0], ("original", *losses), strict=True):
            axes.set_title(name.replace("_", "\n"), fontsize=9)
        return _saved(figure, "png")


def name_of(loss: str) -> str:
    """As the article writes it: minibatch_bce -> "minibatch bce"."""
    return loss.replace("_", " ")


def hue(loss: str, theme: Theme) -> str:
    return theme.hues[loss.split("_")[0]]


def short(value: float, _: object = None) -> str:
    """To three digits: 1,234,000 -> "1.23 M", 40,000 -> "40 k"."""
    for size, unit in ((1e6, "\u00a0M"), (1e3, "\u00a0k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def thin(series: Series) -> Series:
    """At most 2 * STRETCHES points that draw the same noisy line: each stretch's lowest and highest.

    One with values that are no number, at which the line breaks, is left as it is.
    """
    if len(series) <= 2 * STRETCHES or not np.isfinite(series.values).all():
        return series
    kept = sorted(
        {
            int(stretch[place])
            for stretch in np.array_split(np.arange(len(series)), STRETCHES)
            for place in (series.values[stretch].argmin(), series.values[stretch].argmax())
        }
    )
    return Series(series.steps[kept], series.values[kept])


def spread_out(heights: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """The heights, moved as little as it takes to be `distance` apart, within [low, high]; in their order.

    Where they cannot all be there, they are spaced evenly.
    """
    order = np.argsort(heights, kind="stable")
    distance = min(distance, (high - low) / max(1, len(heights) - 1))
    # Blocks of labels that touch: (their places in order, centre of the block).
    blocks: list[tuple[list[int], float]] = []
    for place in order:
        block, centre = [int(place)], float(heights[place])
        while True:
            half = distance * (len(block) - 1) / 2
            centre = min(max(centre, low + half), high - half)
            if not blocks:
                break
            before, middle = blocks[-1]
            if middle + distance * (len(before) - 1) / 2 + distance <= centre - half + 1e-12:
                break
            blocks.pop()
            wished = np.mean([heights[each] for each in (*before, *block)])
            block, centre = [*before, *block], float(wished)
        blocks.append((block, centre))
    moved = [0.0] * len(heights)
    for block, centre in blocks:
        for line, place in enumerate(block):
            moved[place] = centre + distance * (line - (len(block) - 1) / 2)
    return moved


def _axes(
    theme: Theme, height: float, label_room: float = LABEL_ROOM, left: float = 0.105
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((left, 0.45 / height, 1 - left - label_room, 1 - (0.45 + 0.36) / height))
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)
    axes.tick_params(colors=theme.muted, length=3, color=theme.grid)
    axes.xaxis.label.set_color(theme.muted)
    return figure, axes


def _draw_curve(axes: Axes, curve: Curve, theme: Theme, smoothing: float) -> None:
    colour, dashes = hue(curve.loss, theme), DASHES[curve.loss.split("_")[1]]
    width = WIDTHS[curve.loss.split("_")[0]] if curve.label else 0.8
    shown = curve.series
    if smoothing:
        raw = thin(curve.series)
        axes.plot(raw.steps, raw.values, color=colour, linewidth=0.6, alpha=0.2, zorder=1)
        shown = thin(Series(shown.steps, smooth(shown.values, smoothing)))
    axes.plot(shown.steps, shown.values, color=colour, linestyle=dashes, linewidth=width)
    if not smoothing and len(shown) < LONG_CURVE:
        axes.plot(shown.steps, shown.values, "o", color=colour, markersize=1.2 + width)


def _label_ends(axes: Axes, drawn: Sequence[Curve], theme: Theme, smoothing: float) -> None:
    """The losses' names right of the axes, near where their lines end, with a thin line from each."""
    labelled = [curve for curve in drawn if curve.label]
    to_axes = axes.transAxes.inverted()
    ends = []
    for curve in labelled:
        shown = smooth(curve.series.values, smoothing) if smoothing else curve.series.values
        known = np.flatnonzero(np.isfinite(shown))[-1]
        ends.append(to_axes.transform(axes.transData.transform((curve.series.steps[known], shown[known]))))
    wished = [min(max(float(end[1]), 0.0), 1.0) for end in ends]
    heights = spread_out(wished, LINE_SPACING, 0.0, 1.0)
    for curve, end, from_, height in zip(labelled, ends, wished, heights, strict=True):
        reduction, element = curve.loss.split("_")
        style: dict[str, Any] = {
            "transform": axes.transAxes,
            "color": hue(curve.loss, theme),
            "clip_on": False,
        }
        start = max(float(end[0]), 0.0)
        axes.plot([start + 0.01, 1.045], [from_, height], linewidth=0.6, alpha=0.8, **style)
        # A piece of the line itself, so that its dashes and width are named too.
        axes.plot(
            [1.055, 1.125], [height] * 2, linewidth=WIDTHS[reduction], linestyle=DASHES[element], **style
        )
        axes.text(1.145, height, curve.label, va="center_baseline", **style)


def _top(drawn: Sequence[Curve], smoothing: float) -> float | None:
    """Of a linear axis from 0: just above all that comes after the start; None leaves it to matplotlib."""
    tops = [0.0]
    for curve in drawn:
        steps, values = curve.series.steps, curve.series.values
        known = np.isfinite(values)
        if len(values) >= LONG_CURVE:
            known &= steps >= START_SHARE * steps[-1]
        shown = smooth(values, smoothing) if smoothing else values
        tops.append(float(shown[known].max(initial=0)))
        if smoothing and known.any():  # most of the raw curve as well
            tops.append(float(np.percentile(values[known], 95)))
    return 1.08 * max(tops) if max(tops) > 0 else None


def _log_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _shades(theme: Theme) -> tuple[str, ...]:
    hues = theme.hues
    grey, pale = ("#9aa1ab", "#c9cdd3") if theme is LIGHT else ("#7a818b", "#4c525a")
    return hues["minibatch"], hues["pixel"], hues["sample"], grey, pale


def _strip(pictures: np.ndarray) -> np.ndarray:
    """uint8 (1 + L, S, S, 3) -> (S, W, 4), the pictures in equal parts of the width."""
    gap = max(1, pictures.shape[1] // 32)
    opaque = np.concatenate([pictures, np.full_like(pictures[..., :1], 255)], axis=-1)
    return np.concatenate(list(np.pad(opaque, ((0, 0), (0, 0), (gap, gap), (0, 0)))), axis=1)


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) or, with transparency, (H, W, 4)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    """Without the prologue, which names addresses that nobody needs to look up."""
    written = _saved(figure, "svg").decode()
    return written[written.index("<svg") :].replace("'DejaVu Sans'", FONTS).encode()


def _saved(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
