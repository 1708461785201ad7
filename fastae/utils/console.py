"""Lines for people: printed harmlessly, with progress bars and durations."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fastae.utils.streams import discard_output

Item = TypeVar("Item")


class _Output:
    """sys.stdout as it is at the moment; if its reader or terminal has gone, the run continues without it."""

    def write(self, text: str) -> int:
        return self._try(lambda: sys.stdout.write(text))

    def flush(self) -> None:
        self._try(sys.stdout.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    @staticmethod
    def _try(write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError:
            discard_output()


class HarmlessConsole(Console):
    """Prints any text, such as a file's name, so that no terminal obeys anything in it.

    There is no markup, since a name may hold brackets. NO_COLOR is respected.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


console = HarmlessConsole(file=cast(TextIO, _Output()))


def log(text: str, style: str | None = None) -> None:
    """One line to the user, above a progress bar if one is shown. style: rich's, for terminals."""
    console.print(text, style=style)


def printable(text: str) -> str:
    """The text in one harmless line: control characters and stray bytes are escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def track(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """The same items; on a terminal under a progress bar, which disappears at the end."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total, description=text)


def counted(number: int, noun: str) -> str:
    """'1 image', '2,000 images'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size(count: float) -> str:
    """'72 MB', '9.96 GB'."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '7 h 05 min', '4 d 3 h'."""
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
