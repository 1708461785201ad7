"""`fastae gpu` with no run: every GPU of the machine, one a row, as it is now."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import pynvml
from rich.live import Live
from rich.table import Table

from fastae.console import HarmlessConsole, console
from fastae.errors import FastaeError
from fastae.monitor.gpu_reader import GPU_METRICS, THROTTLE, GpuReader
from fastae.monitor.nvml import all_gpus, close_nvml, open_nvml
from fastae.monitor.summary import THROTTLING

COLUMNS = (
    ("SM %", "utilisation"),
    ("mem %", "memory_utilisation"),
    ("GiB used", "memory"),
    ("W", "power"),
    ("°C", "temperature"),
    ("SM MHz", "sm_clock"),
    ("JPEG %", "jpeg"),
    ("NVDEC %", "decoder"),
    ("in MB/s", "pcie_received"),
    ("out MB/s", "pcie_sent"),
)

WIDTH = 200
"""Characters of a line where no terminal sets it: a row a GPU, and no value cut short."""


def show_gpus(*, once: bool, as_json: bool, hz: float, library: Any = pynvml) -> None:
    """Prints the GPUs' state, and goes on until it is interrupted where there is a terminal to show it on.

    Raises FastaeError where there is no NVIDIA driver or no GPU.
    """
    library = open_nvml(library)
    try:
        readers = [GpuReader(library, gpu) for gpu in all_gpus(library)]
        if not readers:
            raise FastaeError("the NVIDIA driver shows no GPU")
        if as_json:
            print(json.dumps([state_of(reader) for reader in readers], indent=2))
        elif once or not console.is_terminal:
            screen = console if console.is_terminal else HarmlessConsole(width=WIDTH)
            screen.print(_table([state_of(reader) for reader in readers]))
        else:
            _follow(readers, hz)
    finally:
        close_nvml(library)


def _follow(readers: list[GpuReader], hz: float) -> None:
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(_table([state_of(reader) for reader in readers]), refresh=True)
            time.sleep(1 / hz)


def state_of(reader: GpuReader) -> dict[str, Any]:
    """One reading, as plain JSON values: None and a reason for what is not offered."""
    values = dict(zip((metric.name for metric in GPU_METRICS), reader.read(slow=True), strict=True))
    reasons = values.pop(THROTTLE.name)
    gpu = reader.gpu
    return {
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "memory_total": gpu.memory_gib,
        "power_limit": gpu.power_limit,
        **{name: None if math.isnan(value) else value for name, value in values.items()},
        "throttling": [] if math.isnan(reasons) else in_words(int(reasons)),
        # A process's own memory is not asked about here, and is no lack of the card's.
        "not_offered": {name: why for name, why in reader.not_offered.items() if name != "process_memory"},
        "lost": reader.lost,
    }


def in_words(reasons: int) -> list[str]:
    return [text for bit, text in THROTTLING.items() if reasons & bit]


def _table(states: list[dict[str, Any]]) -> Table:
    table = Table("", box=None, pad_edge=False)
    table.add_column("GPU", no_wrap=True, min_width=12)
    for heading, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("clocks")
    for state in states:
        cells = (_cell(state, name) for _, name in COLUMNS)
        trouble = f"lost: {state['lost']}" if state["lost"] else "; ".join(state["throttling"])
        table.add_row(str(state["index"]), state["name"], *cells, trouble)
    return table


def _cell(state: Mapping[str, Any], name: str) -> str:
    """The value, of how much where that is known; a dash for what is not offered."""
    value = state[name]
    if value is None:
        return "-"
    of = {"memory": state["memory_total"], "power": state["power_limit"]}.get(name)
    return f"{value:,.0f}" + (f" of {of:,.0f}" if of else "")
