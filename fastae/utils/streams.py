"""The process's standard streams: open from its start, and able to print any text."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> None:
    """To be called first. A stream that was closed leads nowhere; else the next file that is opened, for
    example a checkpoint, would get its number and what is printed. A character that a terminal's encoding
    lacks is escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)  # the programs that are started, compilers say, need it too
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Sends what stdout still holds, and all that follows, nowhere: the interpreter's last flush is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
