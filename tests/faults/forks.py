"""Forks a process that has imported everything, so that a command begins at once."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.processes"])
FAULTS = ("SIGKILL", "SIGTERM", "EIO", "ENOSPC")


def in_fork(*arguments):
    from . import processes

    processes.work(*arguments)


def run(words, folder, output, at=None, fault=""):
    """Runs a command in a fork; returns its exit code, which is negative for a signal."""
    process = FORKS.Process(target=in_fork, args=(words, str(folder), str(output), at, fault))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode
