"""Bad-file recovery: a file that cannot be decoded is replaced by the next good one, also during a run.

A DALI pipeline ends at a bad file, or never returns, and it cannot skip a sample. So the file is found and
replaced, and a new pipeline continues with the batch that failed. The replacement is the next good file by
index, which is the same for every loader, in every later epoch, and in a resumed run.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from fastae.data.files.faults import USABLE, Fault, FileFault
from fastae.data.files.inspect import inspect
from fastae.errors import FastaeError
from fastae.utils.console import log

Item = TypeVar("Item")

PATIENCE = 20.0
"""The seconds that 64 images, or fewer, may take before their files are inspected."""

MORE_PATIENCE = 8
"""PATIENCE is multiplied by this if a slow batch has no bad file: then the storage must be slow."""

FILE_PATIENCE = 120.0
"""The seconds that one file may take: far more than the largest file that passes the check needs."""

MANY = 4
"""If at least 1/MANY of the files of a batch are bad, all files are inspected at once."""


class DecoderError(FastaeError):
    """The decoder failed. The user sees this error if no file caused it."""

    fault = Fault.UNDECODABLE


class DecoderStalled(DecoderError):
    """The decoder did not return in time."""

    fault = Fault.STALLED


class DecoderOutOfMemory(DecoderError):
    """Decoding needs more memory than is free. No file that passes the quick check causes this."""


class NoneLeft(FastaeError):
    """None of the images can be read. `faults` contains the fault of each file."""

    def __init__(self, faults: Sequence[FileFault]) -> None:
        example = "".join(f" (first: {file.path!r:.200}: {file.fault.value})" for file in faults[:1])
        super().__init__(
            f"none of the {len(faults)} images can be read{example}: was the folder moved or unmounted?"
        )
        self.faults = faults


FindFaults = Callable[[Sequence[str]], Iterable[Fault | None]]
"""Decodes files and yields the fault of each, in order; None for a file that can be decoded."""


def log_replaced(bad: FileFault, replacement: str) -> None:
    """Logs a bad file, and the path of the file that replaces it."""
    log(f"{bad.path}: {bad.fault.value}; replaced by {replacement}")


class ImageFiles:
    """The files of images by index. `paths[i]` is the file to read for image i: its own, or a replacement.

    Attributes:
        own: the files as they were given.
        paths: the files to read.
        sources: the index in `own` of each file to read, int64 (M,).
        bad: index -> fault of each file in `own` that was replaced by the next good one.

    Args:
        paths: the images' files.
        on_replaced: is called with each file that is replaced and the path of its replacement.
    """

    def __init__(
        self, paths: Sequence[str], on_replaced: Callable[[FileFault, str], None] | None = None
    ) -> None:
        self.own = paths
        self.paths = list(paths)
        self.sources = np.arange(len(paths))
        self.bad: dict[int, Fault] = {}
        self._on_replaced = on_replaced

    def __len__(self) -> int:
        return len(self.own)

    def good(self) -> list[int]:
        """The indices of the images whose own files are read."""
        return [index for index in range(len(self)) if index not in self.bad]

    def replace(self, faults: Mapping[int, Fault]) -> None:
        """Replaces the files of these images. Raises NoneLeft if no good file remains."""
        self.bad |= faults
        good = self.good()
        if not good:
            raise NoneLeft([FileFault(path, self.bad[index]) for index, path in enumerate(self.own)])
        for index in self.bad:
            self.sources[index] = good[bisect(good, index) % len(good)]
            self.paths[index] = self.own[self.sources[index]]
        for index, fault in faults.items():
            if self._on_replaced:
                self._on_replaced(FileFault(self.own[index], fault), self.paths[index])


def recovered(
    files: ImageFiles,
    find_faults: FindFaults,
    restart: Callable[[int, float], Iterator[Item]],
    indices_at: Callable[[int], Sequence[int]],
) -> Iterator[Item]:
    """Yields the items of a stream that is decoded from files, with bad files replaced.

    Args:
        files: the images' files.
        find_faults: decodes files, to find those that pass the quick check but that the decoder rejects.
        restart: takes a position and a number of seconds. It yields the items at position, position + 1, ...,
            decoded from the current `files.paths`. It raises DecoderStalled if 64 images take more than
            these seconds, and DecoderError if decoding fails for another reason.
        indices_at: takes a position, and returns the indices of the images that its item is made of.

    Raises:
        NoneLeft: no good file remains.
        DecoderError: an item failed twice although none of its files is bad.
    """
    position, failed_at, patience = 0, -1, PATIENCE
    while True:
        try:
            for item in restart(position, patience):
                yield item
                position += 1
            return
        except DecoderError as error:
            if bad := _find_bad(files, indices_at(position), find_faults, error=error):
                files.replace(bad)
            elif failed_at == position:
                raise
            else:  # try once more: a file may have been incomplete because it was being written
                failed_at = position
                patience *= MORE_PATIENCE if isinstance(error, DecoderStalled) else 1


def _find_bad(
    files: ImageFiles, indices: Sequence[int], find_faults: FindFaults, error: DecoderError
) -> dict[int, Fault]:
    """Returns index -> fault of the bad files of an item, for which the decoder raised `error`."""
    # Prefetched files cannot be the cause: DALI raises an error with the batch in which it occurred.
    read = {files.paths[index] for index in indices}
    suspects = [index for index in files.good() if files.own[index] in read]
    bad = _quick_check(files, suspects)
    if MANY * len(bad) >= len(suspects):  # a folder or disk is gone: check all files at once
        bad = _quick_check(files, files.good())
    if bad or isinstance(error, DecoderOutOfMemory):
        return bad
    # The decoder may reject a file that passes the quick check.
    faults = find_faults([files.own[index] for index in suspects])
    return {index: fault for index, fault in zip(suspects, faults, strict=True) if fault}


def _quick_check(files: ImageFiles, indices: Sequence[int]) -> dict[int, Fault]:
    """Returns index -> fault of the images whose own files fail the quick check."""
    faults = ((index, inspect(files.own[index]).fault) for index in indices)
    return {index: fault for index, fault in faults if fault and fault not in USABLE}
