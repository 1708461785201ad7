"""Draws the differences between losses with their intervals, beside the margins of equivalence, as SVG."""

from __future__ import annotations

from typing import Any

from fastae.report.analysis import LEVEL, Analysis, Contrast, Effect
from fastae.report.figures import GRID, INK, PAPER, SETTINGS, WIDTH, Chart, svg
from fastae.report.runs import PRIMARY
from fastae.utils.plotting import import_matplotlib

MARKERS = {"different": "D", "same": "o", "open": "o"}
"""Verdict on a difference -> marker. That of an open question is hollow."""

WITHIN, LINE = "#cfe3f4", "#0a2f5c"
THIN, THICK = 1.4, 4.0
"""The line widths in points of the interval, and of the part of it that is compared with the margin."""

AROUND, ROW = 1.15, 0.34
"""The height in inches of legend and axis, and of a row."""

TICKS = 10


def draw_forest(analysis: Analysis) -> list[Chart]:
    """Draws a chart of the differences in each metric that has a margin."""
    charts = []
    for heading, fit in analysis.fits.items():
        rows = {contrast: row[heading] for contrast, row in analysis.effects.items() if heading in row}
        if rows and all(effect.margin for effect in rows.values()):
            # The held-out error has no unit that readers know, so it is shown in percent of its mean.
            is_primary = heading == PRIMARY and fit.mean > 0
            scale, unit = (100 / fit.mean, "% of its mean") if is_primary else (1e3, "× 0.001")
            title, name = f"Differences in {heading}", heading.lower().replace(" ", "-")
            picture = _draw(rows, scale, f"difference in {heading} [{unit}]")
            alt = f"{title}, with {100 * (1 - LEVEL):.0f} % intervals, beside the margin"
            charts.append(Chart(f"differences-{name}", title, alt, picture))
    return charts


def _draw(rows: dict[Contrast, Effect], scale: float, label: str) -> bytes:
    """Draws a row for each difference, times `scale`, on an axis with this label."""
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(SETTINGS):
        size = (WIDTH, AROUND + ROW * len(rows))
        figure = matplotlib.figure.Figure(figsize=size, dpi=96, layout="constrained")
        axes = figure.add_subplot()
        margin = scale * max(effect.margin or 0.0 for effect in rows.values())
        furthest = max(scale * (abs(effect.value) + effect.half) for effect in rows.values())
        axes.axvspan(-margin, margin, color=WITHIN, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for index, effect in enumerate(rows.values()):
            _draw_effect(axes, index, effect, scale)
        limit = max(1.15 * furthest, 1.5 * margin)  # the margin must be seen to end
        axes.set_xlim(-limit, limit)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [contrast.name for contrast in rows])
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(TICKS, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        handles = [
            matplotlib.lines.Line2D([], [], color=LINE, linewidth=THIN, label=verdict, **_marker(verdict))
            for verdict in MARKERS
        ]
        handles.append(matplotlib.patches.Patch(color=WITHIN, label="within the margin"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        return svg(figure)


def _draw_effect(axes: Any, index: int, effect: Effect, scale: float) -> None:
    """Draws a difference in row `index`: its interval, and the part that is compared with the margin."""
    value, inner, outer = (scale * each for each in (effect.value, effect.one_sided_half, effect.half))
    axes.plot(
        [value - inner, value + inner], [index, index], color=LINE, linewidth=THICK, solid_capstyle="butt"
    )
    axes.errorbar(value, index, xerr=outer, color=LINE, linewidth=THIN, **_marker(effect.verdict))


def _marker(verdict: str) -> dict[str, Any]:
    face = PAPER if verdict == "open" else LINE
    return {"marker": MARKERS[verdict], "markersize": 7, "markerfacecolor": face, "markeredgecolor": LINE}
