"""The host's memory: what the kernel tells of it, and how the C library hands out large blocks."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


def bytes_in(file: Path, name: str) -> int:
    """An entry in kB of one of these files, in bytes. Raises OSError where it has none."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} does not tell {name}")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        return bytes_in(STATUS, "VmHWM")
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
