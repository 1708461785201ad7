"""Console output: log lines, progress bars, and sizes and durations in words."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fastae.utils.streams import discard_output

Item = TypeVar("Item")


class _Output:
    """A stream that writes to the current sys.stdout.

    Once the reader or the terminal is gone, output is discarded instead of raising OSError.
    """

    def write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            discard_output()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


class HarmlessConsole(Console):
    """A console that escapes control characters, so that a file's name cannot control the terminal.

    Markup is off, since a file's name may contain brackets. NO_COLOR is respected.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


console = HarmlessConsole(file=cast(TextIO, _Output()))


def log(text: str, style: str | None = None) -> None:
    """Prints one line, above the progress bar if one is shown. `style` is a rich style, for terminals.

    Line breaks in the text are escaped like all control characters, since a file's name may contain them.
    """
    console.print(printable(text), style=style)


@contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """While the block runs, nothing is logged if `quiet`."""
    before, console.quiet = console.quiet, quiet or console.quiet
    try:
        yield
    finally:
        console.quiet = before


def printable(text: str) -> str:
    """Returns the text on one line, with control characters and undecodable bytes escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, as `printable`; the name of its type if it has no text."""
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__


def track(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """Yields the items. On a terminal, a progress bar is shown meanwhile and removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total, description=text)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: '1 image', '2,000 images'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size(count: float) -> str:
    """Returns a number of bytes in words: '72 MB', '9.96 GB'."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def duration(seconds: float) -> str:
    """Returns a duration in words: '45 s', '3 min 20 s', '7 h 05 min', '4 d 3 h'."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def rate_text(flops: float) -> str:
    """Returns FLOP/s in words: '213 TFLOP/s', '3.7 GFLOP/s'."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP/s"
