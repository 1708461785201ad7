"""Plots a recording: curves of GPU and CPU usage over time, with the phases of the run as background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from fastae.monitor.recording import Column, Phase, Recording
from fastae.utils.plotting import import_matplotlib

COLORS = ("0.6", "tab:purple", "tab:orange", "tab:green", "tab:blue", "tab:red", "tab:cyan", "0.8")
PHASE_COLORS = dict(zip(Phase, COLORS, strict=True))
WIDTH, PANEL_HEIGHT = 10.0, 1.9  # inches, at 100 dots per inch
BINS = 400  # points of a curve; if there are more samples, the median and range of each bin are drawn

PANELS = {
    "GPU [%]": ("gpu/gpu_busy", "gpu/sm_active", "gpu/tensor_active", "gpu/jpeg"),
    "power [W]": ("gpu/power",),
    "memory [GiB]": ("gpu/memory", "host/memory"),
    "CPU [cores]": ("host/cpu", "host/machine_cpu"),
    "images/s": ("loop/images_per_second", "loop/replayed"),
    "waiting [%]": ("loop/data_wait", "loop/device_wait"),
}
"""Title and metrics of the panels. With several GPUs, a panel has only the first metric of each GPU."""


def draw(recording: Recording, heading: str, file: BinaryIO) -> None:
    """Writes a PNG with a panel for each of PANELS that has data."""
    matplotlib = import_matplotlib()
    panels = {title: _columns(recording, keys) for title, keys in PANELS.items()}
    shown = [title for title, columns in panels.items() if columns] or [*PANELS][:1]
    height = 1.0 + PANEL_HEIGHT * len(shown)
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    colors = [PHASE_COLORS[span.phase] for span in recording.spans]
    stripes = [(span.start, span.seconds) for span in recording.spans]
    for axis, title in zip(axes, shown, strict=True):
        _draw_panel(axis, title, panels[title])
        whole = {"yrange": (0, 1), "transform": axis.get_xaxis_transform()}
        axis.broken_barh(stripes, facecolors=colors, alpha=0.15, linewidth=0, **whole)
    axes[-1].set_xlabel("time [s]")
    axes[-1].set_xlim(0, max(recording.seconds, 1e-3))
    figure.align_ylabels(axes)
    figure.suptitle(heading, fontsize="medium", wrap=True, parse_math=False)
    phases = {span.phase: PHASE_COLORS[span.phase] for span in recording.spans if span.seconds}
    patches = [
        matplotlib.patches.Patch(color=color, alpha=0.4, label=phase) for phase, color in phases.items()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize="small")
    figure.savefig(file, format="png")


def binned(column: Column, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """Returns the times, medians, minima and maxima of a curve's points: four arrays (points,).

    A point is a sample, or a bin of samples if there are more samples than bins.
    """
    count = min(bins, len(column.values))
    times = np.array([part[0] for part in np.array_split(column.times, count)])
    parts = np.array_split(column.values, count)
    return times, *(np.array([each(part) for part in parts]) for each in (np.median, np.min, np.max))


def _columns(recording: Recording, keys: Sequence[str]) -> dict[str, Column]:
    """Label -> column, for the columns of a panel that are not always zero."""
    several = len(recording.gpus) > 1
    return {
        column.label: column
        for key in keys
        for column in recording.columns.values()
        if column.key == key
        and max(column.values) > 0.0
        and (key == keys[0] or not (several and key.startswith("gpu/")))
    }


def _draw_panel(axis: Any, title: str, columns: dict[str, Column]) -> None:
    """Draws the curves of a panel."""
    for label, column in columns.items():
        times, values, low, high = binned(column)
        marker = 2 if len(values) > 1 else 10  # a single point has no line
        (line,) = axis.plot(times, values, label=label, linewidth=1, marker=".", markersize=marker)
        axis.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    top = 105.0 if "%" in title else 1.1 * max(max(column.values) for column in columns.values())
    axis.set_ylim(-0.03 * top, top)  # so that a line at 0 is visible
    axis.set_ylabel(title)
    axis.grid(alpha=0.3)
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
    axis.legend(handles=axis.get_lines(), fontsize="small", **beside)
