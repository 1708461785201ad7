"""The host's memory: how much of it this process may have, and how the C library hands out large blocks."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1

ROOT = Path("/")
"""What proc and sys are looked for in."""

CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""A control group's files for its limit and its use, and the name of the reclaimable part in memory.stat."""


def free_bytes(root: Path | None = None) -> int:
    """Bytes that can be allocated without swapping, and without the kernel killing this process for it:
    MemAvailable, or what the tightest control group leaves.

    Raises OSError if there is no /proc/meminfo.
    """
    root = root or ROOT
    left = (limit - used for limit, used in _control_groups(root))
    return max(0, min([bytes_in(root / "proc/meminfo", "MemAvailable"), *left]))


def total_bytes(root: Path | None = None) -> int:
    """Bytes that this process could have with nothing else running; raises as `free_bytes` does."""
    root = root or ROOT
    limits = (limit for limit, _ in _control_groups(root))
    return min([bytes_in(root / "proc/meminfo", "MemTotal"), *limits])


def _control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each memory control group that this process is in.

    cgroups(7). Its own group and all ancestors count: each limits the sum of what is below it.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        mounts: tuple[str, ...] = ()
        if hierarchy == "0":
            mounts, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), CGROUP_V2
        elif "memory" in controllers.split(","):
            mounts, names = ("sys/fs/cgroup/memory",), CGROUP_V1
        for mount in mounts:
            for group in _ancestry(root / mount, path):
                if usage := _usage(group, *names):
                    yield usage


def _ancestry(mount: Path, path: str) -> Iterator[Path]:
    """The folder of the group `path` and those of its ancestors.

    A container may see its own group as the mount, but its path as the host names it. So leading parts of the
    path are dropped until the rest is there.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # a group outside of what this process sees
        parts = []
    while parts and not mount.joinpath(*parts).is_dir():
        parts = parts[1:]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _usage(group: Path, limit: str, used: str, reclaimable: str) -> tuple[int, int] | None:
    stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    try:
        return int(_read(group / limit)), int(_read(group / used)) - int(stat.get(reclaimable, 0))
    except ValueError:  # "max", or nothing there: no limit
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def bytes_in(file: Path, name: str) -> int:
    """An entry in kB of one of these files, in bytes. Raises OSError if it has none."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} does not tell {name}")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        return bytes_in(ROOT / "proc/self/status", "VmHWM")
    except OSError:  # some containers' kernels; this figure begins with that of the process that started this
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> bool:
    """Lets glibc keep freed blocks for reuse instead of returning them to the kernel; False elsewhere.

    A training step on the CPU frees and takes again some gigabytes of activations and gradients. By
    default each block above 32 MiB is mapped anew, and faulted in page by page: a fifth of a step
    (2 cores, 4 KiB pages). The process's memory then stays at its peak. For the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
