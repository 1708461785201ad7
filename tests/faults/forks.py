"""Forks a process that has imported everything, so that a command begins at once."""

import multiprocessing
import threading
from multiprocessing.connection import wait

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.processes"])
FAULTS = ("SIGKILL", "SIGTERM", "EIO", "ENOSPC")
LIMIT = 120.0
"""The most seconds of a command."""

LOCK = threading.Lock()
"""Held while exit codes are read. Starting a process reads those of all that have ended, and an exit code can
be read only once: of two threads that read one, the slower gets 255."""


def in_fork(*arguments):
    from . import processes

    processes.work(*arguments)


def run(words, folder, output, at=None, fault=""):
    """Runs a command in a fork; returns its exit code, which is negative for a signal."""
    process = FORKS.Process(target=in_fork, args=(words, str(folder), str(output), at, fault))
    with LOCK:
        process.start()
    has_ended = wait([process.sentinel], LIMIT)
    with LOCK:
        if not has_ended:
            process.kill()
        process.join()
        return process.exitcode if has_ended else None
