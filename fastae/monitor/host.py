"""Reads how much CPU time, memory and disk bandwidth processes use, from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

SHORTEST = 0.1  # the minimum seconds between two readings: /proc counts in steps of 10 ms

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class HostReader:
    """Reads the total usage of some processes over the time between calls."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._time = time.monotonic()
        self._totals = self._read_totals()

    def read(self) -> dict[str, float]:
        """Returns column -> value for what /proc shows; {} if it is too soon after the last reading."""
        now = time.monotonic()
        seconds = now - self._time
        if seconds < SHORTEST:
            return {}
        before, self._totals, self._time = self._totals, self._read_totals(), now
        found = {}
        for name, total in self._totals.items():
            if name == "memory":
                found["host/memory"] = total
            elif name in before:  # the total shrinks if a process has ended: growth is 0 then
                found[f"host/{name}"] = max(0.0, total - before[name]) / seconds
        return found

    def _read_totals(self) -> dict[str, float]:
        """Returns the processes' CPU seconds, GiB of memory and MB read from disk, and the machine's seconds.

        Figures that are unknown are missing.
        """
        totals = _machine_seconds()
        for pid in self._pids:
            for name, value in _of_process(pid).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals


def family(pid: int) -> tuple[int, ...]:
    """Returns `pid` and the ids of all its descendants."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    parents = {each: int(fields[1]) for each in pids if (fields := _stat(each))}
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return tuple(found)


def _machine_seconds() -> dict[str, float]:
    """Returns the CPU seconds of all processes: the fields of 'cpu' in proc(5) except idle and iowait."""
    fields = _text(Path("/proc/stat")).split()[1:8]
    if not fields:
        return {}
    user, nice, system, _, _, irq, softirq = map(int, fields)
    return {"machine_cpu": (user + nice + system + irq + softirq) * TICK}


def _of_process(pid: int) -> dict[str, float]:
    """Returns a process's CPU seconds, GiB of memory and MB read from disk, as far as they are known."""
    fields = _stat(pid)
    if not fields:
        return {}
    ticks = int(fields[11]) + int(fields[12])  # proc(5): utime, stime
    used = {"cpu": ticks * TICK, "memory": int(fields[21]) * PAGE / 2**30}
    counts = dict(line.split(": ") for line in _text(Path(f"/proc/{pid}/io")).splitlines())
    if "read_bytes" in counts:  # hidden for other users' processes
        used["disk_read"] = int(counts["read_bytes"]) / 1e6
    return used


def _stat(pid: int) -> list[str]:
    """Reads /proc/PID/stat from its third field on. The second, a name, may contain spaces and brackets."""
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
