"""The host's memory: how much of it this process may have, and how the C library hands out large blocks."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1

ROOT = Path("/")
"""Where proc and sys are."""

CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""A control group's files for its limit and its use, and the name of the reclaimable part in memory.stat."""


def free_bytes() -> int:
    """Bytes that can be allocated before the host swaps, or the kernel kills this process: MemAvailable, or
    what the tightest control group leaves. Raises OSError if there is no /proc/meminfo.
    """
    left = (limit - used for limit, used in _control_groups())
    return max(0, min([bytes_in("proc/meminfo", "MemAvailable"), *left]))


def total_bytes() -> int:
    """Bytes that this process could have if nothing else ran. Raises OSError as `free_bytes` does."""
    return min([bytes_in("proc/meminfo", "MemTotal"), *(limit for limit, _ in _control_groups())])


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        return bytes_in("proc/self/status", "VmHWM")
    except OSError:  # some containers' kernels; this figure includes the process that started this one
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bytes_in(file: str, name: str) -> int:
    """An entry in kB of a file in /proc, in bytes. Raises OSError if there is none."""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/{file} has no {name}")


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


def _control_groups() -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each memory control group that this process is in.

    See cgroups(7). Its own group and all ancestors count: each limits the sum of what is below it. In a
    container the mount may be its own group, and the path the host's: then only the mount exists.
    """
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        if hierarchy == "0":
            mounts, names = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], CGROUP_V2
        elif "memory" in controllers.split(","):
            mounts, names = ["sys/fs/cgroup/memory"], CGROUP_V1
        else:
            continue
        path = "" if ".." in path else path.strip("/")  # "..": outside of what it sees
        for mount in (ROOT / name for name in mounts):
            group = mount / path
            groups = [each for each in (group, *group.parents) if each.is_relative_to(mount)]
            yield from filter(None, (_usage(each, *names) for each in groups))


def _usage(group: Path, limit: str, used: str, reclaimable: str) -> tuple[int, int] | None:
    stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    try:
        return int(_read(group / limit)), int(_read(group / used)) - int(stat.get(reclaimable, 0))
    except ValueError:  # "max", or no such file: no limit
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
