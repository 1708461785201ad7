"""What processes take of the host: cores, memory and reads from disk, from Linux's /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fastae.monitor.recording import Metric, Query

PERIOD, SHORTEST = 1.0, 0.1  # seconds between readings, and at least: /proc counts in steps of 10 ms
LONGEST_BETWEEN_SCANS = 16.0  # seconds: a scan costs 25 us per process, so it is done ever less often

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux's proc_ns.h
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


COLUMNS = {
    "host/cpu": Metric("host CPU", "cores"),
    "host/machine_cpu": Metric("host CPU, all programs", "cores"),
    "host/memory": Metric("host memory", "GiB"),
    "host/disk_read": Metric("host disk reads", "MB/s"),
}


class HostReader:
    """Reads the process `pid`, and with `children` all that descend from it, over the time between calls."""

    def __init__(self, pid: int, children: bool = False) -> None:
        self.pid = pid
        self.columns = COLUMNS
        self._children = children
        self._members: tuple[int, ...] = (pid,)
        self._baselines: dict[int, dict[str, float]] = {}
        self._ours: dict[int, bool] = {}
        self._started = self._time = self._next_scan = time.monotonic()
        self._totals = self._read_totals()

    def queries(self) -> list[Query]:
        return [(PERIOD, self.read)]

    def read(self) -> dict[str, float]:
        """A value for each column that /proc shows."""
        now = time.monotonic()
        seconds = now - self._time
        if seconds < SHORTEST:
            return {}
        if self._children and now >= self._next_scan:
            self._members = family(self.pid)
            self._next_scan = now + min(LONGEST_BETWEEN_SCANS, now - self._started)
        before, self._totals, self._time = self._totals, self._read_totals(), now
        # A process that ends may take its count with it: no growth.
        values = {
            name: max(0.0, total - before[name]) / seconds
            for name, total in self._totals.items()
            if name in before and name != "memory"
        }
        if "cpu" in values:  # a child that ended unseen comes with all its time at once
            values["cpu"] = min(values["cpu"], os.cpu_count() or 1)
        if "memory" in self._totals:
            values["memory"] = self._totals["memory"]
        return {f"host/{name}": value for name, value in values.items()}

    def is_ours(self, pid: int) -> bool | None:
        """Whether a process descends from the one that is read; None if /proc does not know it."""
        if pid not in self._ours:
            fields, ancestor = _stat(pid), pid
            if not fields:
                return None
            while fields and ancestor not in (self.pid, 0):
                ancestor = int(fields[1])
                fields = _stat(ancestor)
            self._ours[pid] = ancestor == self.pid
        return self._ours[pid]

    def _read_totals(self) -> dict[str, float]:
        """CPU seconds, GiB of memory and MB read from disk, over all members, and CPU seconds of the machine;
        without what is unknown.

        A child that is found later counts from then on: what it had used before is its baseline. Baselines
        stay when it ends, since its parent inherits its counts.
        """
        used = {pid: _of_process(pid, self._children) for pid in self._members}
        for pid, each in used.items():
            if each and pid != self.pid:
                self._baselines.setdefault(pid, each | {"memory": 0.0})
        totals = _machine_seconds()
        for name in ("cpu", "memory", "disk_read"):
            known = [each[name] for each in used.values() if name in each]
            if known:
                before = (each.get(name, 0.0) for each in self._baselines.values())
                totals[name] = sum(known) - sum(before)
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


def sees_all_processes() -> bool:
    """Whether process ids here are the driver's; in a container they are mostly not."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE
    except OSError:
        return False


def _machine_seconds() -> dict[str, float]:
    """CPU seconds of everything that runs here: proc(5), the fields of 'cpu' but for idle and iowait."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, _text(Path("/proc/stat")).split()[1:9])
    except ValueError:
        return {}
    return {"machine_cpu": (user + nice + system + irq + softirq) * TICK}


def _of_process(pid: int, with_ended_children: bool) -> dict[str, float]:
    """CPU seconds, GiB of memory, MB read from disk, as far as they are known."""
    fields = _stat(pid)
    if not fields:
        return {}
    # proc(5): utime, stime, and cutime, cstime of children that have ended and been waited for.
    ticks = sum(map(int, fields[11 : 15 if with_ended_children else 13]))
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
