"""Memory and cores of the host that this process may use, within its control groups (version 2; cgroups(7));
and how the C library hands out large blocks."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from pathlib import Path

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


def usable_cores() -> float:
    """The cores that this process may use, by its affinity and the quotas of its control groups."""
    quotas = (_read(group / "cpu.max").split() for group in _control_groups())  # QUOTA PERIOD
    allowed = (int(each[0]) / int(each[1]) for each in quotas if each and each[0] != "max")
    return min([float(len(os.sched_getaffinity(0))), *allowed])


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


def _control_groups() -> list[Path]:
    """This process's control group and all above it: each limits the sum of what is below it.

    In a container the mount may be its own group, and the path the host's: then only the mount exists.
    """
    lines = _read(ROOT / "proc/self/cgroup").splitlines()
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    mount = ROOT / "sys/fs/cgroup"
    group = mount / ("" if ".." in path else path)  # "..": outside of what it sees
    return [each for each in (group, *group.parents) if each.is_relative_to(mount)]


def _memory_limits() -> list[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each control group that has a limit."""
    found = []
    for group in _control_groups():
        stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
        try:
            used = int(_read(group / "memory.current")) - int(stat.get("inactive_file", 0))
            found.append((int(_read(group / "memory.max")), used))
        except ValueError:  # "max", or no such file
            continue
    return found


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
