"""Reads how much CPU time, memory and disk bandwidth processes use, and how long they wait for a CPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import psutil

SHORTEST_INTERVAL = 0.1
"""The minimum seconds between two readings: Linux counts CPU time in steps of 10 ms."""


class HostReader:
    """Reads the total usage of some processes over the time between calls."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._processes.append(psutil.Process(pid))
        self._time = time.monotonic()
        self._totals = self._read_totals()

    def read(self) -> dict[str, float]:
        """Returns column -> value; {} if it is too soon after the last reading."""
        now = time.monotonic()
        seconds = now - self._time
        if seconds < SHORTEST_INTERVAL:
            return {}
        before, self._totals, self._time = self._totals, self._read_totals(), now
        values = {}
        for metric, total in self._totals.items():
            if metric == "memory":
                values["host/memory"] = total
            elif metric in before:  # the total shrinks if a process has ended: growth is 0 then
                values[f"host/{metric}"] = max(0.0, total - before[metric]) / seconds
        return values

    def _read_totals(self) -> dict[str, float]:
        """Returns metric -> its total over the processes, without metrics that are unknown.

        Times are in CPU seconds, memory is in GiB, and disk reads are in MB.
        """
        machine = psutil.cpu_times()
        busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
        totals = Counter[str]()
        for process in self._processes:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                totals["cpu"] += times.user + times.system
                totals["memory"] += process.memory_info().rss / 2**30
                totals["disk_read"] += (
                    process.io_counters().read_bytes / 1e6
                )  # hidden for other users' processes
        return {"machine_cpu": busy, **totals}


def family(pid: int) -> tuple[int, ...]:
    """Returns `pid` and the ids of all its descendants."""
    return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
