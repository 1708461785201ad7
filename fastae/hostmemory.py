"""How the C library hands out large blocks of host memory, set for a program that takes the same again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


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
