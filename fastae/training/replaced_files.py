"""Keeps track of the files that turn out to be bad when a loader reads them."""

from __future__ import annotations

from fastae.data.files.faults import FileFault
from fastae.data.files.recovery import log_replaced
from fastae.runs.folder import RunFolder
from fastae.utils.console import console, log

NAMED = 3
"""The number of replaced files that the log names. Further ones are only counted."""


class ReplacedFiles:
    """The files that turned out to be bad when they were read. Each was replaced by another file.

    Args:
        is_main: whether this is the main rank. In training, the others log these files although they are
            quiet, since each rank reads other files.
    """

    def __init__(self, is_main: bool = True) -> None:
        self._is_main = is_main
        self.found: list[FileFault] = []
        self.runs: list[RunFolder] = []
        """The runs in progress. Each lists these files in its folder."""

    def add(self, bad: FileFault, substitute: str) -> None:
        """Notes a bad file, and the path of the file that replaces it. Loaders call this."""
        self.found.append(bad)
        for run in self.runs:
            run.note_skipped([bad])
        quiet, number = console.quiet, len(self.found)
        console.quiet = quiet and (self._is_main or not self.runs)
        if number <= NAMED:
            log_replaced(bad, substitute)
        elif number.bit_count() == 1:  # at 4, 8, 16, ...
            log(f"{number:,} files that cannot be decoded were replaced (skipped.txt names them)")
        console.quiet = quiet
