"""Files that decoders are given, and what becomes of one that turns out to be bad in mid-run.

A decoder of DALI's that meets a bad file ends its whole pipeline, and there is no way to skip a sample.
So the file is searched for, replaced, and a new pipeline goes on from the batch that failed. The
replacement is the next good file by index: the same for every loader, at every later epoch.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from fastae.data.check import Finding, decodes, quietly
from fastae.data.jpeg import Fault, inspect
from fastae.errors import FastaeError

Item = TypeVar("Item")

DECODER_ERRORS = (RuntimeError, ValueError)
"""What DALI raises for a file that it cannot read or decode."""

MANY = 4
"""From every fourth file on that is bad, all files are looked at."""

FEW = 8
"""Files that the decoder alone refuses at a time; where there are more, it is broken, not they."""

BATCH = 64
"""Files that the decoder is given at once when it is asked which of them it cannot decode."""


class ImageFiles:
    """`paths[i]` is the file to read for image i: its own, or its replacement.

    on_replaced: told of each file that went bad, and of the one that stands in for it.
    """

    def __init__(
        self, paths: Sequence[str], on_replaced: Callable[[Finding, str], None] | None = None
    ) -> None:
        self.paths = list(paths)
        self._own = paths
        self._bad: set[int] = set()
        self._reads: dict[int, int] = {}
        self._on_replaced = on_replaced

    def __len__(self) -> int:
        return len(self._own)

    def mended(
        self,
        stream: Callable[[int], Iterator[Item]],
        images_of: Callable[[int], Iterable[int]],
        decodable: Callable[[Sequence[str]], bool],
    ) -> Iterator[Item]:
        """The items of `stream(0)`, where `stream(i)` starts at the i-th; goes on behind bad files.

        images_of: the indices of the images that item i, and those prefetched with it, are made of.
        decodable: whether the decoder, which has the last word, decodes all of these files (BATCH at most).

        Raises FastaeError where no file is left, and what the decoder raised where it is no file's fault.
        """
        position, tried_again = 0, -1
        while True:
            try:
                for item in stream(position):
                    yield item
                    position += 1
                return
            except DECODER_ERRORS:
                read = {self._reads.get(image, image) for image in images_of(position)}
                found = self._look_for_bad(sorted(read - self._bad), decodable)
                if found:
                    self._replace(found)
                elif tried_again == position:
                    raise
                else:  # a file that was being written just then is whole by now
                    tried_again = position

    def _look_for_bad(
        self, suspects: Sequence[int], decodable: Callable[[Sequence[str]], bool]
    ) -> dict[int, Fault]:
        """Which of these images' files are bad, and why."""
        found = self._faulty(suspects, _fault)
        if not found:  # the decoder is stricter than Pillow; but if it refuses all, the fault is its own
            refused = list(islice(self._undecodable(suspects, decodable), FEW + 1))
            blame = len(refused) <= FEW and len(refused) < len(suspects)
            return dict.fromkeys(refused, Fault.UNDECODABLE) if blame else {}
        if MANY * len(found) >= len(suspects):  # a folder or disk is gone: not to be found batch by batch
            others = (index for index in range(len(self)) if index not in self._bad)
            found |= self._faulty(others, _visible_fault)
        return found

    def _faulty(self, images: Iterable[int], fault_of: Callable[[str], Fault | None]) -> dict[int, Fault]:
        with quietly():
            return {index: fault for index in images if (fault := fault_of(self._own[index]))}

    def _undecodable(
        self, suspects: Sequence[int], decodable: Callable[[Sequence[str]], bool]
    ) -> Iterator[int]:
        """By halves: a decoder does not tell which file it failed at."""
        if not suspects:
            return
        if len(suspects) <= BATCH and decodable([self._own[index] for index in suspects]):
            return
        if len(suspects) == 1:
            yield suspects[0]
            return
        middle = len(suspects) // 2
        yield from self._undecodable(suspects[:middle], decodable)
        yield from self._undecodable(suspects[middle:], decodable)

    def _replace(self, found: Mapping[int, Fault]) -> None:
        self._bad |= found.keys()
        if len(self._bad) == len(self):
            raise FastaeError(f"none of the {len(self)} images can be read any more: is the folder gone?")
        self._reads = stand_ins(self._bad, len(self))
        for index, other in self._reads.items():
            self.paths[index] = self._own[other]
        for index, fault in found.items():
            if self._on_replaced:
                self._on_replaced(Finding(self._own[index], fault), self.paths[index])


def stand_ins(bad: Collection[int], count: int) -> dict[int, int]:
    """For each bad one of `count` images the next good one by index, behind the last the first."""
    good = [index for index in range(count) if index not in bad]
    return {index: good[bisect(good, index) % len(good)] for index in bad}


def _visible_fault(path: str) -> Fault | None:
    """A fault that header and end of the file show."""
    fault = inspect(path).fault
    return None if fault is None or fault.usable else fault


def _fault(path: str) -> Fault | None:
    return _visible_fault(path) or (None if decodes(path) else Fault.UNDECODABLE)
