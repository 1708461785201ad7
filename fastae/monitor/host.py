"""What a process takes of the host: cores, memory and reads from disk, from Linux's /proc."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from fastae.monitor.gpu_reader import Metric

CORES = Metric("cpu", "CPU use", "cores")
MACHINE = Metric("machine_cpu", "CPU use, all programs", "cores")
MEMORY = Metric("memory", "host memory", "GiB")
DISK = Metric("disk_read", "read from disk", "MB/s")
HOST_METRICS = (CORES, MACHINE, MEMORY, DISK)

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LONGEST_BETWEEN_SCANS = 16.0
"""Seconds. A look through all processes costs 25 us for each, so it is done ever less often."""


class HostReader:
    """Reads the process `pid`, and with `children` whatever it has started, over the time between calls."""

    def __init__(self, pid: int, children: bool = False) -> None:
        self.pid = pid
        self.not_offered: dict[str, str] = {}
        self.processes: tuple[int, ...] = (pid,)
        self._children = children
        self._seen: set[str] = set()
        self._started = self._time = self._next_scan = time.monotonic()
        self._totals = self._read_totals()

    def read(self) -> list[float]:
        """A value for each of HOST_METRICS; nan where /proc does not tell."""
        now = time.monotonic()
        if self._children and now >= self._next_scan:
            self.processes = family(self.pid)
            self._next_scan = now + min(LONGEST_BETWEEN_SCANS, now - self._started)
        before, self._totals = self._totals, self._read_totals()
        seconds, self._time = now - self._time, now
        cores, machine, disk = (
            _grown(before[metric], self._totals[metric]) / seconds for metric in (CORES, MACHINE, DISK)
        )
        return [cores, machine, self._totals[MEMORY] / 2**30, disk / 1e6]

    def _read_totals(self) -> dict[Metric, float]:
        """CPU seconds, bytes of memory, bytes read from disk, over all processes; nan for the untold."""
        readings = [_of_process(pid, self._children) for pid in self.processes]
        totals = {MACHINE: _machine_seconds()}
        for metric, values in zip((CORES, MEMORY, DISK), zip(*readings, strict=True), strict=True):
            known = [value for value in values if not math.isnan(value)]
            totals[metric] = sum(known) if known else math.nan
        for metric, value in totals.items():
            if math.isnan(value) and metric.name not in self._seen:
                self.not_offered[metric.name] = "/proc does not tell"
            elif not math.isnan(value):
                self._seen.add(metric.name)
                self.not_offered.pop(metric.name, None)
        return totals


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def family(pid: int) -> tuple[int, ...]:
    """`pid` and every process that descends from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return tuple(found)


def _grown(before: float, after: float) -> float:
    """How much a total grew; nan stays nan. A process that ends takes its count with it: no growth."""
    return 0.0 if after < before else after - before


def _machine_seconds() -> float:
    """CPU seconds of everything that runs here: proc(5), the fields of 'cpu' but for idle and iowait."""
    try:
        with Path("/proc/stat").open("rb") as file:
            user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in file.readline().split()[1:])
    except (OSError, ValueError):
        return math.nan
    return (user + nice + system + irq + softirq) * TICK


def _of_process(pid: int, with_ended_children: bool) -> tuple[float, float, float]:
    fields = _stat(pid)
    if fields is None:
        return math.nan, math.nan, math.nan
    # proc(5): utime, stime, and cutime, cstime of children that have ended and been waited for.
    ticks = sum(int(field) for field in fields[11 : 15 if with_ended_children else 13])
    return ticks * TICK, int(fields[21]) * PAGE, _bytes_read(pid)


def _stat(pid: int) -> list[bytes] | None:
    """/proc/PID/stat from its third field on: the second, a name, may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return text.rpartition(b")")[2].split()


def _bytes_read(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/io").read_bytes()
    except OSError:  # another user's process, or a container that hides it
        return math.nan
    return next(
        (float(line.split()[1]) for line in text.splitlines() if line.startswith(b"read_bytes")), math.nan
    )
