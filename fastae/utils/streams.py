"""Makes sure that the process's standard streams are open, and can print any text."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> None:
    """Opens closed standard streams on /dev/null, and makes stdout and stderr escape what they cannot encode.

    This must be called before any file is opened. Otherwise the next file that is opened, a checkpoint for
    example, would get the number of the closed stream, and everything that is printed would be written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)  # child processes, such as compilers, need it too
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discards what stdout has buffered and all later output, so that the final flush raises nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
