"""The picture of a recording: what the GPU did over time, the phases of the run behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fastae.monitor.poller import BEFORE, COMPILE, EVAL, TRAIN, WARM_UP, Recording
from fastae.monitor.summary import phase_spans

PHASE_COLOURS = {
    BEFORE: "0.85",
    COMPILE: "tab:purple",
    WARM_UP: "tab:orange",
    TRAIN: "tab:green",
    EVAL: "tab:blue",
}
WIDTH, HEIGHT_OF_A_PANEL = 10.0, 1.9  # inches, at 100 dots an inch


@dataclass(frozen=True)
class Panel:
    """`columns`: the last parts of the names of the columns that it shows, of whichever GPU."""

    title: str
    columns: tuple[str, ...]
    top: float | None = None


PANELS = (
    Panel("GPU [%]", ("/utilisation", "/jpeg"), 105),
    Panel("power [W]", ("/power",)),
    Panel("CPU use [cores]", ("host/cpu",)),
    Panel("images/s", ("loop/images_per_second",)),
    Panel("data wait [%]", ("loop/data_wait",), 105),
)


def draw(recording: Recording, file: BinaryIO) -> None:
    """A PNG of every panel that has a value to show."""
    panels = [panel for panel in PANELS if _lines(recording, panel)] or [PANELS[2]]
    figure = Figure(figsize=(WIDTH, 0.8 + HEIGHT_OF_A_PANEL * len(panels)), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for name, times, values in _lines(recording, panel):
            axis.plot(times, values, linewidth=1, label=name)
        axis.set_ylabel(panel.title)
        axis.set_ylim(0, panel.top)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(loc="upper right", fontsize="small")
        for phase, start, end in phase_spans(recording):
            axis.axvspan(start, end, color=PHASE_COLOURS.get(phase, "0.9"), alpha=0.15, linewidth=0)
    axes[-1].set_xlabel("time [s]")
    axes[-1].set_xlim(0, max(recording.seconds, 1e-3))
    figure.legend(handles=_legend(recording), loc="outside upper center", ncols=5, fontsize="small")
    figure.savefig(file, format="png")


def _lines(recording: Recording, panel: Panel) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of each column with a value: its name, and times and values without the gaps."""
    lines = []
    for name in recording.columns:
        values = recording.column(name)
        known = ~np.isnan(values)
        if name.endswith(panel.columns) and known.any():
            lines.append((name, recording.times[known], values[known]))
    return lines


def _legend(recording: Recording) -> list[Any]:
    seen = dict.fromkeys(recording.phases)
    return [Patch(color=PHASE_COLOURS.get(phase, "0.9"), alpha=0.4, label=phase) for phase in seen]
