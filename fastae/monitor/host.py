"""What processes take of the host: cores, memory and reads from disk, from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

SHORTEST = 0.1  # seconds between two readings, at least: /proc counts in steps of 10 ms

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class HostReader:
    """Reads what these processes use together, over the time between calls."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._time = time.monotonic()
        self._totals = self._read_totals()

    def read(self) -> dict[str, float]:
        """Column -> value, for what /proc shows."""
        now = time.monotonic()
        seconds = now - self._time
        if seconds < SHORTEST:
            return {}
        before, self._totals, self._time = self._totals, self._read_totals(), now
        # A process that ends takes its counts with it: no growth.
        values = {
            name: max(0.0, total - before[name]) / seconds
            for name, total in self._totals.items()
            if name in before
        }
        if "memory" in self._totals:
            values["memory"] = self._totals["memory"]
        return {f"host/{name}": value for name, value in values.items()}

    def _read_totals(self) -> dict[str, float]:
        """CPU seconds, GiB of memory and MB read from disk, and CPU seconds of the machine; without what is
        unknown."""
        totals = _machine_seconds()
        for pid in self._pids:
            for name, value in _of_process(pid).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals


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


def _machine_seconds() -> dict[str, float]:
    """CPU seconds of everything that runs here: proc(5), the fields of 'cpu' but for idle and iowait."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, _text(Path("/proc/stat")).split()[1:9])
    except ValueError:
        return {}
    return {"machine_cpu": (user + nice + system + irq + softirq) * TICK}


def _of_process(pid: int) -> dict[str, float]:
    """CPU seconds, GiB of memory, MB read from disk, as far as they are known."""
    fields = _stat(pid)
    if not fields:
        return {}
    ticks = int(fields[11]) + int(fields[12])  # proc(5): utime, stime
    used = {"cpu": ticks * TICK, "memory": int(fields[21]) * PAGE / 2**30}
    for line in _text(Path(f"/proc/{pid}/io")).splitlines():  # hidden for other users' processes
        if line.startswith("read_bytes:"):
            used["disk_read"] = int(line.split()[1]) / 1e6
    return used


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: the second, a name, may hold blanks and brackets."""
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
