"""Finds the memory and the cores of the host that this process may use, and tunes the C library's allocator.

The limits of control groups (cgroups(7), versions 1 and 2) are respected.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from fastae.errors import FastaeError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of two parameters of glibc's mallopt(3)."""

LARGEST_INT = 2**31 - 1

NO_THREAD = ("can't start new thread", os.strerror(errno.EAGAIN))
"""Texts in Python's and C++'s errors if the kernel refuses to start a thread.

Both are plain RuntimeErrors (in C++, std::system_error passed on by DALI and PyTorch) without an errno.
"""

NO_MEMORY = ("DefaultCPUAllocator", "could not create a primitive")
"""Parts of PyTorch's and oneDNN's messages if the host's memory is used up. These errors have no type."""

LEAST_ADDRESSES = 2_400_000_000
"""The bytes of address space below which even a small run on two cores ends early, or its process crashes."""

NO_FILE = (errno.EMFILE, errno.ENFILE)
"""The numbers of the errors if the process, or the machine, can open no more files."""

ROOT = Path("/")
"""The folder that contains proc and sys; a test replaces it, and psutil.PROCFS_PATH."""


def free_bytes() -> int:
    """Returns the bytes that can be allocated before the host swaps or the kernel kills this process.

    This is what the machine has available, or what the tightest control group leaves, whichever is less.
    """
    left = (limit - used for limit, used in _memory_limits())
    return max(0, min([_memory()[0], *left]))


def total_bytes() -> int:
    """Returns the bytes that this process could allocate if nothing else ran."""
    return min([_memory()[1], *(limit for limit, _ in _memory_limits())])


def _memory() -> tuple[int, int]:
    """Returns the bytes that the machine has available, and its total; without /proc, those of sysconf(3)."""
    try:
        machine = psutil.virtual_memory()
    except OSError:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    return machine.available, machine.total


def peak_bytes() -> int:
    """Returns the peak of this process's resident memory, in bytes."""
    kib = _number(ROOT / "proc/self/status", "VmHWM")
    if kib is None:  # some containers lack the entry; this figure includes the parent process's peak
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024


class Cores(NamedTuple):
    """Numbers of CPU cores."""

    usable: float
    """The logical CPUs that this process may use. A quota can make it a fraction."""

    physical: float
    """The physical cores that these CPUs belong to, at most `usable`."""

    machine: float
    """The physical cores of the whole machine."""


def count_cores() -> Cores:
    """Counts the cores of this machine and of this process."""
    usable, mine = usable_cores(), os.sched_getaffinity(0)
    return Cores(usable, min(usable, _count_physical(mine)), _count_physical(range(os.cpu_count() or 1)))


def usable_cores() -> float:
    """Returns the number of CPUs that this process may use, by its affinity and control groups' quotas."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def thread_limit(error: Exception) -> str | None:
    """Returns what is wrong and the remedy if a thread could not be started; None for any other error."""
    if not any(text in str(error) for text in NO_THREAD):
        return None
    return "no more threads can be started: raise the limit of processes (ulimit -u, or the container's pids)"


def lacks_memory(error: Exception) -> bool:
    """Returns whether an error means that the host's memory is used up."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)


def require_files(error: OSError) -> None:
    """Raises FastaeError if the error means that the process, or the machine, can open no more files."""
    if error.errno in NO_FILE:
        reason = os.strerror(error.errno)
        raise FastaeError(f"cannot open {error.filename!r}: {reason}; raise the limit (ulimit -n)") from None


def require_address_space() -> None:
    """Raises FastaeError if `ulimit -v` allows too little: libraries would fail, with errors of any kind."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_ADDRESSES:
        least = LEAST_ADDRESSES / 1e9
        raise FastaeError(
            f"ulimit -v is {limit / 1e9:.1f} GB, and training needs more than {least:g}: raise it"
        )


def keep_freed_memory() -> None:
    """Makes glibc, which PyTorch's wheels are built for, keep freed blocks for reuse.

    A training step on the CPU frees and allocates some gigabytes of activations and gradients. By default
    glibc returns each block above 32 MiB to the kernel, and maps and faults in new pages for the next: a
    fifth of a step (2 cores, 4 KiB pages). The price is that the process's memory stays at its peak.
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def _count_physical(cpus: Iterable[int]) -> int:
    """Returns the number of physical cores of these CPUs: the two threads of one core count once.

    psutil counts those of the machine only, and Slurm and Kubernetes give a job both threads of its cores.
    """
    topology = (ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus)
    return len({_read(file) or str(file) for file in topology})


def _quotas() -> Iterator[float]:
    """Yields the number of CPUs that each control group with a quota allows."""
    for group in (*_control_groups(), *_control_groups("cpu")):
        # A file of version 2 holds quota and period, and version 1 has a file for each.
        files = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [word for file in files for word in _read(group / file).split()]
        if len(words) == 2 and words[0].isdigit():  # else "max" or -1, or no file
            yield int(words[0]) / int(words[1])


def _control_groups(controller: str = "") -> list[Path]:
    """Returns the folders of this process's control group and its ancestors, which limit the process, too.

    In a container, the mounted folder may be that of the container's group while the group's path is the
    host's. Then only the mounted folder exists; files of the others read as empty.

    Args:
        controller: the name of a controller of version 1, which has a tree for each; "" for version 2.
    """
    lines = _read(ROOT / "proc/self/cgroup").splitlines()  # NUMBER:CONTROLLERS:PATH
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    path = next((each[2].strip("/") for each in entries if controller in each[1].split(",")), "")
    mount = ROOT / "sys/fs/cgroup" / controller
    group = mount / ("" if ".." in path else path)  # with "..", the group is outside of the mount
    return [each for each in (group, *group.parents) if each.is_relative_to(mount)]


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yields (limit, bytes used that cannot be reclaimed) for each control group that has a limit."""
    for controller, used, limit, inactive in (
        ("", "memory.current", "memory.max", "inactive_file"),
        ("memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
    ):
        for group in _control_groups(controller):
            reclaimable = _number(group / "memory.stat", inactive) or 0
            try:
                yield int(_read(group / limit)), int(_read(group / used)) - reclaimable
            except ValueError:  # "max", or no file; version 1 writes a number larger than any memory
                continue


def _number(file: Path, name: str) -> int | None:
    """Returns the number of an entry in a file of lines NAME NUMBER; None if there is none."""
    found = re.search(rf"^{name}:?\s+(\d+)", _read(file), re.MULTILINE)
    return int(found[1]) if found else None


def _read(file: Path) -> str:
    """Returns a file's text; "" if it cannot be read."""
    try:
        return file.read_text()
    except OSError:
        return ""
