"""Plots a recording: curves of GPU and CPU usage over time, with the phases of the run as background."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

from fastae.monitor.recording import Column, GpuRecord, Phase, Recording, key_of
from fastae.utils.plotting import import_matplotlib

PHASE_COLORS = {
    Phase.BEFORE: "0.6",
    Phase.COMPILE: "tab:purple",
    Phase.WARM_UP: "tab:orange",
    Phase.TRAIN: "tab:green",
    Phase.EVAL: "tab:blue",
    Phase.SAVE: "tab:red",
}
WIDTH, PANEL_HEIGHT = 10.0, 1.9  # inches, at 100 dots per inch
BINS = 400  # points of a curve; if there are more samples, the median and range of each bin are drawn

PANELS = (
    ("GPU [%]", ("gpu/gpu_busy", "gpu/sm_active", "gpu/tensor_active", "gpu/jpeg"), 105.0),
    ("power [W]", ("gpu/power",), None),
    ("memory [GiB]", ("gpu/memory", "host/memory"), None),
    ("CPU [cores]", ("host/cpu", "host/machine_cpu"), None),
    ("images/s", ("loop/images_per_second",), None),
    ("waiting [%]", ("loop/data_wait", "loop/device_wait"), 105.0),
)
"""Title, metrics and upper limit of the panels. With several GPUs, only the first metric is drawn."""


def draw(recording: Recording, heading: str, file: BinaryIO) -> None:
    """Writes a PNG with a panel for each of PANELS that has data."""
    matplotlib = import_matplotlib()
    several = len({name.partition("/")[0] for name in recording.columns if name.startswith("gpu")}) > 1
    panels = [(title, top, _columns(recording, keys, several, top)) for title, keys, top in PANELS]
    shown = [panel for panel in panels if panel[2]]
    size = (WIDTH, 1.0 + PANEL_HEIGHT * max(1, len(shown)))
    figure = matplotlib.figure.Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, top, found) in zip(axes, shown, strict=False):
        limits = _power_limits(recording.gpus) if title.startswith("power") else []
        _draw_panel(axis, title, top, found, several, limits)
    for axis in axes:
        for phase, color in PHASE_COLORS.items():
            stripes = [(start, length) for each, start, length in recording.stretches() if each is phase]
            look = {"color": color, "alpha": 0.15, "linewidth": 0}
            axis.broken_barh(stripes, (0, 1), transform=axis.get_xaxis_transform(), **look)
        for start in recording.sessions[1:]:
            axis.axvline(start, color="black", linewidth=1, linestyle=":")
    resumed = ", resumed at the dotted lines" if len(recording.sessions) > 1 else ""
    axes[-1].set_xlabel(f"time [s]{resumed}")
    axes[-1].set_xlim(0, max(recording.seconds, 1e-3))
    figure.align_ylabels(axes)
    figure.suptitle(heading, fontsize="medium", wrap=True)
    phases = dict.fromkeys(phase for phase, _, length in recording.stretches() if length)
    patches: list[Any] = [
        matplotlib.patches.Patch(color=PHASE_COLORS[phase], alpha=0.4, label=phase) for phase in phases
    ]
    if several:  # one legend for the GPUs in all panels
        patches += [each for each in axes[0].get_lines() if each.get_label().startswith("GPU ")]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize="small")
    figure.savefig(file, format="png")


def binned(column: Column, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """The times, medians, minima and maxima of a curve's points, four arrays (points,).

    A point is a sample, or a bin of samples if there are more samples than bins.
    """
    times, values = column.times, column.values
    low = high = values
    if len(times) > bins:
        starts = np.linspace(0, len(times), bins + 1).astype(int)[:-1]
        parts = np.split(values, starts[1:])
        times = times[starts]
        values, low, high = (np.array(list(map(each, parts))) for each in (np.median, np.min, np.max))
    return times, values, low, high


def _columns(
    recording: Recording, keys: Sequence[str], several: bool, top: float | None
) -> dict[str, Column]:
    """The columns of a panel, without those that are zero. With several GPUs, only the first metric."""
    return {
        name: column
        for key in keys
        for name, column in recording.columns.items()
        if key_of(name) == key
        and column.values.max(initial=0.0) > (0.5 if top else 0.0)
        and (key == keys[0] or not (several and key.startswith("gpu/")))
    }


def _power_limits(gpus: Iterable[GpuRecord]) -> list[float]:
    return sorted({each.gpu.power_limit for each in gpus if each.gpu.power_limit})


def _draw_panel(
    axis: Any, title: str, top: float | None, found: dict[str, Column], several: bool, limits: list[float]
) -> None:
    for name, column in found.items():
        owner = name.partition("/")[0]
        is_one_of_many = several and owner.startswith("gpu")
        label = owner.replace("gpu", "GPU ") if is_one_of_many else column.metric.label
        color = f"C{owner.removeprefix('gpu')}" if is_one_of_many else None
        times, values, low, high = binned(column)
        marker = "." if len(times) < 3 else None  # a line of one point would be invisible
        (line,) = axis.plot(times, values, linewidth=1, label=label, marker=marker, color=color)
        axis.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for limit in limits:
        axis.axhline(limit, color="black", linewidth=1, linestyle="--", label="power limit")
    top = top or 1.1 * max([*limits, *(column.values.max() for column in found.values())]) or 1.0
    axis.set_ylim(-0.03 * top, top)  # so that a line at 0 is visible
    axis.set_ylabel(title)
    axis.grid(alpha=0.3)
    named = [
        each
        for each in axis.get_lines()
        if each.get_label() != title and not (several and each.get_label().startswith("GPU "))
    ]
    if named:
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1, "frameon": False}
        axis.legend(handles=named, fontsize="small", ncols=len(named), **above)
