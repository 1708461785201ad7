"""Reads how much CPU time, memory and disk bandwidth processes use, and how long they wait for a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from fastae.device.gpu_reader import Pids

SHORTEST_INTERVAL = 0.1
"""The minimum seconds between two readings: Linux counts CPU time in steps of 10 ms."""

FAMILY_SECONDS = 5.0
"""The seconds after which the processes of a program are found anew.

psutil then reads all of /proc, which takes 26 us per process of the machine (Intel Xeon, 73 processes).
"""


class HostReader:
    """Reads the total usage of a program's processes over the time between calls.

    Args:
        own: returns the ids of the processes. A process that it returns for the first time is counted from
            then on.
    """

    def __init__(self, own: Pids) -> None:
        self._own = own
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
        for metric, totals in self._totals.items():
            if metric == "memory":
                values["host/memory"] = sum(totals.values())
            elif metric in before:
                growth = (max(0.0, total - before[metric].get(key, total)) for key, total in totals.items())
                values[f"host/{metric}"] = sum(growth) / seconds
        return values

    def _read_totals(self) -> dict[str, dict[object, float]]:
        """Returns metric -> process, thread or None for the machine -> total, without unknown metrics.

        Times are in CPU seconds, memory is in GiB, and disk reads are in MB.
        """
        machine = psutil.cpu_times()
        busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
        totals = defaultdict[str, dict[object, float]](dict)
        for pid in self._own():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    totals["cpu"][pid] = times.user + times.system
                    totals["memory"][pid] = process.memory_info().rss / 2**30
                    if waits := _seconds_waiting(pid):
                        totals["cpu_wait"] |= waits
                    # This comes last, since it raises an error for other users' processes.
                    totals["disk_read"][pid] = process.io_counters().read_bytes / 1e6
        return {"machine_cpu": {None: busy}, **totals}


def _seconds_waiting(pid: int) -> dict[object, float]:
    """Returns thread -> seconds in which it waited for a CPU; {} if the kernel hides them.

    The second number of a thread's schedstat has the nanoseconds (Linux's Documentation/scheduler).
    """
    seconds: dict[object, float] = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            seconds[file] = int(file.read_text().split()[1]) / 1e9
    return seconds


def family(pid: int) -> tuple[int, ...]:
    """Returns `pid` and the ids of all its descendants."""
    return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))


class Family:
    """The ids of a process and of all its descendants now, such as a loader's workers."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._pids: tuple[int, ...] = (root,)
        self._due = 0.0

    def __call__(self) -> Collection[int]:
        """Returns the ids, which are found anew every FAMILY_SECONDS."""
        if time.monotonic() >= self._due:
            with suppress(psutil.Error, OSError):  # some systems hide other users' processes
                self._pids = family(self._root)
            self._due = time.monotonic() + FAMILY_SECONDS
        return self._pids
