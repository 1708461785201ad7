"""The plot of a recording: what GPU and CPU did over time, with the phases of the run behind the curves."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from fastae.monitor.recording import Column, Phase, Recording
from fastae.utils.plotting import import_matplotlib

PHASE_COLORS = {
    Phase.BEFORE: "0.6",
    Phase.COMPILE: "tab:purple",
    Phase.WARM_UP: "tab:orange",
    Phase.TRAIN: "tab:green",
    Phase.EVAL: "tab:blue",
}
WIDTH, PANEL_HEIGHT = 10.0, 1.9  # inches, at 100 dots per inch
BINS = 400  # points of a curve; if there are more samples, each bin's median and range are drawn
GAP = 5.0  # usual intervals between samples, from which a pause is left open

PANELS = (
    ("GPU [%]", ("gpu_busy", "sm_active", "jpeg"), 105.0),
    ("power [W]", ("power",), None),
    ("CPU [cores]", ("cpu", "machine_cpu"), None),
    ("images/s", ("images_per_second",), None),
    ("waiting [%]", ("data_wait", "device_wait"), 105.0),
)
"""Title, metrics, and top. The first metric is drawn for each GPU, the others if there is only one, and only
if they were ever above a half."""


def draw(recording: Recording, heading: str, file: BinaryIO) -> None:
    """Writes a PNG with a panel for each of PANELS that has a value to show."""
    matplotlib = import_matplotlib()
    shown = [
        (title, top, found) for title, metrics, top in PANELS if (found := _columns(recording, *metrics))
    ]
    count = max(1, len(shown))
    figure = matplotlib.figure.Figure(
        figsize=(WIDTH, 1.0 + PANEL_HEIGHT * count), dpi=100, layout="constrained"
    )
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, shown, strict=False):
        _draw_panel(axis, *panel)
    for axis in axes:
        for phase, color in PHASE_COLORS.items():
            stripes = [(start, length) for each, start, length in recording.stretches() if each is phase]
            look = {"color": color, "alpha": 0.15, "linewidth": 0}
            axis.broken_barh(stripes, (0, 1), transform=axis.get_xaxis_transform(), **look)
    axes[-1].set_xlabel("time [s]")
    axes[-1].set_xlim(0, max(recording.seconds, 1e-3))
    figure.suptitle(heading, fontsize="medium")
    phases = dict.fromkeys(span.phase for span in recording.spans)
    patches = [
        matplotlib.patches.Patch(color=PHASE_COLORS[phase], alpha=0.4, label=phase) for phase in phases
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(file, format="png")


def binned(column: Column, bins: int = BINS, gap: float = GAP) -> tuple[np.ndarray, ...]:
    """Times, medians, minima and maxima of a curve's points, (points,) each: one per sample, or one per bin
    if there are more samples than bins. A pause of `gap` usual intervals is a point at nan."""
    times, values = column.times, column.values
    low = high = values
    if len(times) > bins:
        starts = np.linspace(0, len(times), bins + 1).astype(int)[:-1]
        parts = np.split(values, starts[1:])
        times = times[starts]
        values, low, high = (np.array(list(map(each, parts))) for each in (np.median, np.min, np.max))
    pauses = np.diff(times)
    gaps = np.flatnonzero(pauses > gap * np.median(pauses)) + 1 if len(pauses) else np.array([], dtype=int)
    times = np.insert(times, gaps, times[gaps - 1])
    return times, *(np.insert(each.astype(float), gaps, np.nan) for each in (values, low, high))


def _columns(recording: Recording, first: str, *others: str) -> dict[str, Column]:
    found = {}
    for name, column in recording.columns.items():
        owner, _, metric = name.partition("/")
        is_one_of_many = owner.startswith("gpu") and len(recording.gpus) > 1
        is_extra = metric in others and not is_one_of_many and column.values.max(initial=0.0) > 0.5
        if len(column) and (metric == first or is_extra):
            found[name] = column
    return found


def _draw_panel(axis: Any, title: str, top: float | None, found: dict[str, Column]) -> None:
    metrics = {column.metric for column in found.values()}
    for name, column in found.items():
        label = column.metric.label if len(metrics) > 1 else name.partition("/")[0].replace("gpu", "GPU ")
        # The loop's figures are of all the time since the last ones: they have no gaps.
        times, values, low, high = binned(column, gap=np.inf if name.startswith("loop/") else GAP)
        marker = "." if len(times) < 3 else None  # a line of one point would not be seen
        (line,) = axis.plot(times, values, linewidth=1, label=label, marker=marker)
        axis.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    top = top or 1.1 * max(column.values.max() for column in found.values()) or 1.0
    axis.set_ylim(-0.03 * top, top)  # so that a line at 0 is seen
    axis.set_ylabel(title)
    axis.grid(alpha=0.3)
    if len(found) > 1:
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1, "frameon": False}
        axis.legend(fontsize="small", ncols=len(found), **above)
