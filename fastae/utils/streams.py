"""The process's standard streams: open at its start, and a full disk behind stdout is an error of its own."""

from __future__ import annotations

import io
import os
import sys


class OutputError(OSError):
    """stdout cannot be written to."""


class _Stdout(io.FileIO):
    def write(self, content: object) -> int:
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            raise OutputError(*error.args) from None


def open_streams() -> None:
    """Call it first. A stream that was closed leads nowhere: else the next file opened, a checkpoint's say,
    would get its number and what is printed. A character that a terminal's encoding lacks is escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(
                number, True
            )  # a program that is started, a compiler, has need of them as well
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Stdout(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Sends what stdout still holds, and all that follows, nowhere: the interpreter's last flush is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
