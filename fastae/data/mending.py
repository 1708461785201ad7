"""Files that decoders are given, and what becomes of one that turns out to be bad in mid-run.

A decoder of DALI's that meets a bad file ends its whole pipeline, and there is no way to skip a sample.
So the file is searched for, replaced, and a new pipeline goes on from the batch that failed. The
replacement is the next good file by index: the same for every loader, at every later epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from fastae.data.check import Finding, decodes
from fastae.data.jpeg import Fault, inspect
from fastae.errors import FastaeError

Item = TypeVar("Item")

DECODER_ERRORS = (RuntimeError, ValueError)
"""What DALI raises for a file that it cannot read or decode."""


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
        self, stream: Callable[[int], Iterator[Item]], images_of: Callable[[int], Iterable[int]]
    ) -> Iterator[Item]:
        """The items of `stream(0)`, where `stream(i)` starts at the i-th; goes on behind bad files.

        images_of: the indices of the images that item i, and those prefetched with it, are made of.
        """
        position = 0
        while True:
            try:
                for item in stream(position):
                    yield item
                    position += 1
                return
            except DECODER_ERRORS:
                if not self._replace_bad(images_of(position)):
                    raise

    def _replace_bad(self, images: Iterable[int]) -> bool:
        """Replaces the files of these images that cannot be decoded; False where all can."""
        found = False
        for index in sorted({self._reads.get(image, image) for image in images} - self._bad):
            if fault := _fault(self._own[index]):
                found = True
                self._bad.add(index)
                self._replace_all()
                if self._on_replaced:
                    self._on_replaced(Finding(self._own[index], fault), self.paths[index])
        return found

    def _replace_all(self) -> None:
        if len(self._bad) == len(self):
            raise FastaeError(f"none of the {len(self)} images can be read any more: is the folder gone?")
        for index in self._bad:
            following = ((index + step) % len(self) for step in range(1, len(self)))
            self._reads[index] = next(other for other in following if other not in self._bad)
            self.paths[index] = self._own[self._reads[index]]


def _fault(path: str) -> Fault | None:
    fault = inspect(path).fault
    if fault is not None and not fault.usable:
        return fault
    return None if decodes(path) else Fault.UNDECODABLE
