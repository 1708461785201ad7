"""Memory and cores of the host that this process may use, within its control groups (cgroups(7); both
versions); and how the C library hands out large blocks."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastae.errors import FastaeError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1

NO_THREAD = ("can't start new thread", os.strerror(errno.EAGAIN))
"""What Python's and C++'s errors say if the kernel refuses to start a thread."""

NO_FILE = (errno.EMFILE, errno.ENFILE)
"""The process, or the machine, has as many files open as it may."""

ROOT = Path("/")
"""Where proc and sys are."""


def free_bytes() -> int:
    """Bytes that can be allocated before the host swaps, or the kernel kills this process: MemAvailable, or
    what the tightest control group leaves. Without a /proc, the memory that is not in use at all.
    """
    left = (limit - used for limit, used in _memory_limits())
    return max(0, min([_memory("MemAvailable", "SC_AVPHYS_PAGES"), *left]))


def total_bytes() -> int:
    """Bytes that this process could have if nothing else ran."""
    return min([_memory("MemTotal", "SC_PHYS_PAGES"), *(limit for limit, _ in _memory_limits())])


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        return _bytes_in("proc/self/status", "VmHWM")
    except OSError:  # some containers' kernels; this figure includes the process that started this one
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cores(NamedTuple):
    """usable: CPUs that this process may use. physical: of these, without the second threads of cores.
    machine: physical cores of the whole machine."""

    usable: float
    physical: float
    machine: float


def count_cores() -> Cores:
    """The cores of this machine, and those of this process."""
    usable, mine = usable_cores(), os.sched_getaffinity(0)
    return Cores(usable, min(usable, _physical(mine)), _physical(range(os.cpu_count() or 1)))


def usable_cores() -> float:
    """The CPUs that this process may use, by its affinity and the quotas of its control groups."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def thread_limit(error: Exception) -> str | None:
    """What to do about an error that a thread could not be started, in words; None for any other error."""
    if not any(text in str(error) for text in NO_THREAD):
        return None
    return "no more threads can be started: raise the limit of processes (ulimit -u, or the container's pids)"


def require_files(error: OSError) -> None:
    """Raises FastaeError if an error is of the process or the machine, which can open no more files."""
    if error.errno in NO_FILE:
        reason = os.strerror(error.errno)
        raise FastaeError(f"cannot open {error.filename!r}: {reason}; raise the limit (ulimit -n)") from None


def local_ranks() -> int:
    """The processes that torchrun started on this machine, of which this is one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks for reuse instead of returning them to the kernel; False elsewhere.

    A training step on the CPU frees and takes again some gigabytes of activations and gradients. By
    default each block above 32 MiB is mapped anew, and faulted in page by page: a fifth of a step
    (2 cores, 4 KiB pages). The process's memory then stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def _physical(cpus: Iterable[int]) -> int:
    """How many cores these CPUs are: the two threads of one core count once."""
    topology = (ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus)
    return len({_read(file) or str(file) for file in topology})


def _quotas() -> Iterator[float]:
    """The CPUs that each control group allows, if it has a quota."""
    for group in _control_groups():
        quota, period = (_read(group / "cpu.max").split() or ["max", ""])[:2]
        if quota != "max":
            yield int(quota) / int(period)
    for group in _control_groups("cpu"):
        quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota not in ("", "-1"):
            yield int(quota) / int(period)


def _control_groups(controller: str = "") -> list[Path]:
    """This process's control group and all above it: each limits the sum of what is below it. controller: of
    version 1, in which each has its own tree; empty for version 2.

    In a container the mount may be its own group, and the path the host's: then only the mount exists.
    """
    lines = _read(ROOT / "proc/self/cgroup").splitlines()  # NUMBER:CONTROLLERS:PATH
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    path = next((each[2].strip("/") for each in entries if controller in each[1].split(",")), "")
    mount = ROOT / "sys/fs/cgroup" / controller
    group = mount / ("" if ".." in path else path)  # "..": outside of what it sees
    return [each for each in (group, *group.parents) if each.is_relative_to(mount)]


def _memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each control group that has a limit."""
    for controller, used, limit, inactive in (
        ("", "memory.current", "memory.max", "inactive_file"),
        ("memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
    ):
        for group in _control_groups(controller):
            lines = _read(group / "memory.stat").splitlines()
            stat = dict(line.split(" ", 1) for line in lines if " " in line)
            try:
                yield int(_read(group / limit)), int(_read(group / used)) - int(stat.get(inactive, 0))
            except ValueError:  # "max", or no such file; version 1 has a number beyond any memory
                continue


def _memory(entry: str, pages: str) -> int:
    """An entry of /proc/meminfo in bytes; if there is none, what sysconf(3) knows, which needs no /proc."""
    try:
        return _bytes_in("proc/meminfo", entry)
    except OSError:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _bytes_in(file: str, name: str) -> int:
    """An entry in kB of a file in /proc, in bytes. Raises OSError if there is none."""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/{file} has no {name}")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
