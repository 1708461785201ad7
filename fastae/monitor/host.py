"""What processes take of the host: cores, memory and reads from disk, from Linux's /proc."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from fastae.monitor.poller import Query
from fastae.monitor.recording import Metric

CORES = Metric("cpu", "CPU", "cores")
MACHINE = Metric("machine_cpu", "CPU, all programs", "cores")
MEMORY = Metric("memory", "host memory", "GiB")
DISK = Metric("disk_read", "read from disk", "MB/s")
COLUMNS = {f"host/{metric.name}": metric for metric in (CORES, MACHINE, MEMORY, DISK)}

PERIOD, SHORTEST = 1.0, 0.1  # seconds between readings, and at least: /proc counts in steps of 10 ms
LONGEST_BETWEEN_SCANS = 16.0  # seconds: a scan costs 25 us per process, so it is done ever less often

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux's proc_ns.h
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class HostReader:
    """Reads the process `pid`, and with `children` all that descend from it, over the time between calls."""

    def __init__(self, pid: int, children: bool = False) -> None:
        self.pid = pid
        self._children = children
        self._missing = {metric.name: "not in /proc" for metric in COLUMNS.values()}
        self._members: tuple[int, ...] = (pid,)
        self._baselines: dict[int, tuple[float, float]] = {}
        self._ours: dict[int, bool] = {}
        self._started = self._time = self._next_scan = time.monotonic()
        self._totals = self._read_totals()

    def columns(self) -> dict[str, Metric]:
        return COLUMNS

    def queries(self) -> list[Query]:
        return [Query(self.read, PERIOD)]

    def record(self) -> dict[str, str]:
        """Metric -> why it never had a value."""
        return dict(self._missing)

    def read(self) -> dict[str, float]:
        """A value for each of COLUMNS that /proc shows."""
        now = time.monotonic()
        seconds = now - self._time
        if seconds < SHORTEST:
            return {}
        if self._children and now >= self._next_scan:
            self._members = family(self.pid)
            self._next_scan = now + min(LONGEST_BETWEEN_SCANS, now - self._started)
        self._time, before, self._totals = now, self._totals, self._read_totals()
        # A process that ends may take its count with it: no growth. nan stays nan.
        grown = {metric: self._totals[metric] - before[metric] for metric in before}
        rates = {metric: (0.0 if growth < 0 else growth) / seconds for metric, growth in grown.items()}
        values = {
            # A child that ended unseen comes with all its time at once: no more than there are cores.
            CORES: min(rates[CORES], os.cpu_count() or 1),
            MACHINE: rates[MACHINE],
            MEMORY: self._totals[MEMORY] / 2**30,
            DISK: rates[DISK] / 1e6,
        }
        known = {metric.name: value for metric, value in values.items() if not math.isnan(value)}
        for name in known:
            self._missing.pop(name, None)
        return {f"host/{name}": value for name, value in known.items()}

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

    def _read_totals(self) -> dict[Metric, float]:
        """CPU seconds, bytes of memory, bytes read from disk, over all members; nan for what is unknown.

        A child that is found later counts from then on: what it had used before is its baseline. Baselines
        stay when it ends, since its parent inherits its counts.
        """
        readings = {pid: _of_process(pid, self._children) for pid in self._members}
        for pid, (cpu, _, disk) in readings.items():
            if pid != self.pid and not math.isnan(cpu):
                self._baselines.setdefault(pid, (cpu, 0.0 if math.isnan(disk) else disk))
        cores, memory, disk = (_sum(values) for values in zip(*readings.values(), strict=True))
        return {
            CORES: cores - sum(cpu for cpu, _ in self._baselines.values()),
            MEMORY: memory,
            DISK: disk - sum(disk for _, disk in self._baselines.values()),
            MACHINE: _machine_seconds(),
        }


def usable_cores() -> float:
    """The cores that this process may use, by its affinity and the quota of its control group."""
    return min(float(len(os.sched_getaffinity(0))), cpu_quota() or math.inf)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that the control group, or one above it, allows; None without a limit."""
    found: list[float | None] = []
    for line in _text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / "cpu" if controllers else mount  # version 1, or version 2
        folder = base / path.strip("/")
        found += [_quota_of(each) for each in (folder, *folder.parents) if each.is_relative_to(base)]
    return min(filter(None, found), default=None)


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


def _quota_of(folder: Path) -> float | None:
    """cpu.max of version 2, "QUOTA PERIOD", or the two files of version 1."""
    old = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
    try:
        quota, period = map(int, (_text(folder / "cpu.max") or old).split())
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _sum(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) if known else math.nan


def _machine_seconds() -> float:
    """CPU seconds of everything that runs here: proc(5), the fields of 'cpu' but for idle and iowait."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, _text(Path("/proc/stat")).split()[1:9])
    except ValueError:
        return math.nan
    return (user + nice + system + irq + softirq) * TICK


def _of_process(pid: int, with_ended_children: bool) -> tuple[float, float, float]:
    """CPU seconds, bytes of memory, bytes read from disk."""
    fields = _stat(pid)
    if not fields:
        return math.nan, math.nan, math.nan
    # proc(5): utime, stime, and cutime, cstime of children that have ended and been waited for.
    ticks = sum(int(field) for field in fields[11 : 15 if with_ended_children else 13])
    # Of another user's process, or in some containers, there is no io.
    read = [line.split()[1] for line in _text(Path(f"/proc/{pid}/io")).splitlines() if line[:4] == "read"]
    return ticks * TICK, int(fields[21]) * PAGE, float(read[0]) if read else math.nan


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: the second, a name, may hold blanks and brackets."""
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
