"""Reads how much CPU time, memory and disk bandwidth processes use, and how long they wait for a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SHORTEST_INTERVAL = 0.1
"""The minimum seconds between two readings: Linux counts CPU time in steps of 10 ms."""


PRESSURE = Path("/proc/pressure/cpu")
"""Linux's pressure stall information: how long threads of any program have waited for a CPU."""


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

        Times are in CPU seconds, memory is in GiB, disk reads are in MB, and pressure is in percent-seconds.
        """
        machine = psutil.cpu_times()
        busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
        totals = defaultdict[str, float](float)
        for process in self._processes:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                totals["cpu"] += times.user + times.system
                totals["memory"] += process.memory_info().rss / 2**30
                if waits := _seconds_waiting(process.pid):
                    totals["cpu_wait"] += sum(waits)
                # This comes last, since it raises an error for other users' processes.
                totals["disk_read"] += process.io_counters().read_bytes / 1e6
        return {"machine_cpu": busy, **_read_pressure(), **totals}


def _seconds_waiting(pid: int) -> list[float]:
    """Returns the seconds in which each thread of a process waited for a CPU; [] if the kernel hides them.

    The second number of a thread's schedstat has the nanoseconds (Linux's Documentation/scheduler).
    """
    seconds = []
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            seconds.append(int(file.read_text().split()[1]) / 1e9)
    return seconds


def _read_pressure() -> dict[str, float]:
    """Returns the percent-seconds in which some thread of the machine waited for a CPU; {} if unknown."""
    try:
        some = PRESSURE.read_text().splitlines()[0]  # some avg10=0.0 avg60=0.0 avg300=0.0 total=MICROSECONDS
    except OSError:
        return {}
    return {"cpu_pressure": int(some.rpartition("=")[2]) / 1e4}


def family(pid: int) -> tuple[int, ...]:
    """Returns `pid` and the ids of all its descendants."""
    return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
