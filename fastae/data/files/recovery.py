"""Bad-file recovery: a file that cannot be decoded is replaced by the next good one, also during a run.

A DALI pipeline that meets a bad file ends, or never returns, and it cannot skip a sample. So the file is
found and replaced, and a new pipeline continues with the batch that failed. The replacement is the next good
file by index: the same for every loader, in every later epoch, and in a run that is resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from fastae.data.files.jpeg import USABLE, Fault, FileFault, inspect
from fastae.errors import FastaeError

Item = TypeVar("Item")

PATIENCE = 20.0
"""Seconds that a batch may take before its files are inspected."""

MORE_PATIENCE = 8
"""Times as many once a batch took longer and nothing was wrong with its files: the storage is slow."""

FILE_PATIENCE = 120.0
"""Seconds that a single file may take: far more than the largest that passes the check."""

MANY = 4
"""If at least one in four files of a batch is bad, all files are inspected at once."""


class DecoderError(FastaeError):
    """The decoder failed. Raised to the user if no file is to blame for it."""

    fault = Fault.UNDECODABLE


class DecoderStalled(DecoderError):
    """The decoder did not return in time."""

    fault = Fault.STALLED


class DecoderOutOfMemory(DecoderError):
    """Decoding needs more memory than is free. No file that passes the quick check is to blame."""


class NoneLeft(FastaeError):
    """None of the images can be read. found: what is wrong with each file."""

    def __init__(self, found: Sequence[FileFault]) -> None:
        example = "".join(f" ({each.path!r:.200}: {each.fault.value})" for each in found[:1])
        super().__init__(
            f"none of the {len(found)} images can be read any more{example}: is the folder gone?"
        )
        self.found = found


class FaultFinder(Protocol):
    """A decoder that tells what it has against files (`fastae.data.loaders.decode.Decoder`)."""

    def faults(self, paths: Sequence[str]) -> Iterator[Fault | None]: ...


class ImageFiles:
    """`paths[i]` is the file to read for image i: its own, or the next good one after it.

    own: the files as they were given. bad: index -> fault of those that are not read. on_replaced: called
    with each of these and the path of its replacement.
    """

    def __init__(
        self, paths: Sequence[str], on_replaced: Callable[[FileFault, str], None] | None = None
    ) -> None:
        self.own = paths
        self.paths = list(paths)
        self.bad: dict[int, Fault] = {}
        self._on_replaced = on_replaced

    def __len__(self) -> int:
        return len(self.own)

    def good(self) -> list[int]:
        """The indices of the images whose own files are read."""
        return [index for index in range(len(self)) if index not in self.bad]

    def replace(self, found: Mapping[int, Fault]) -> None:
        """Replaces the files of these images. Raises NoneLeft if there are no others."""
        self.bad |= found
        good = self.good()
        if not good:
            raise NoneLeft([FileFault(path, self.bad[index]) for index, path in enumerate(self.own)])
        for index in self.bad:
            self.paths[index] = self.own[good[bisect(good, index) % len(good)]]
        for index, fault in found.items():
            if self._on_replaced:
                self._on_replaced(FileFault(self.own[index], fault), self.paths[index])


class RecoverableStream(ABC, Generic[Item]):
    """Items that are decoded from files; `recovered` continues if one of the files is bad."""

    def __init__(self, files: ImageFiles, decoder: FaultFinder) -> None:
        self.files = files
        self.decoder = decoder

    @abstractmethod
    def restart(self, position: int, patience: float) -> Iterator[Item]:
        """The items at position, position + 1, ..., from `files.paths` as they are now.

        Raises DecoderError, and DecoderStalled if one takes more than `patience` seconds.
        """

    @abstractmethod
    def images(self, position: int) -> Iterable[int]:
        """The indices of the images that the item at `position` is made of."""

    def recovered(self) -> Iterator[Item]:
        """The items of `restart(0)`.

        Raises NoneLeft, and DecoderError for an item that failed twice though no file is to blame.
        """
        position, failed_at, patience = 0, -1, PATIENCE
        while True:
            try:
                for item in self.restart(position, patience):
                    yield item
                    position += 1
                return
            except DecoderError as error:
                if found := self._find_bad(position, error):
                    self.files.replace(found)
                elif failed_at == position:
                    raise
                else:  # a file that was being written is whole by now
                    failed_at = position
                    patience *= MORE_PATIENCE if isinstance(error, DecoderStalled) else 1

    def _find_bad(self, position: int, error: DecoderError) -> dict[int, Fault]:
        """Which of the files that this item is made of are bad, and why. error: what the decoder raised."""
        # Prefetched files are not suspected: DALI reports an error with the batch that it happened in.
        files = self.files
        read = {files.paths[image] for image in self.images(position)}
        suspects = [index for index in files.good() if files.own[index] in read]
        found = _quick_check(files, suspects)
        if MANY * len(found) >= len(suspects):  # a folder or disk is gone: not to be found batch by batch
            found = _quick_check(files, files.good())
        if found or isinstance(error, DecoderOutOfMemory):
            return found
        # The decoder decides: it may refuse a file whose markers are in order.
        faults = self.decoder.faults([files.own[index] for index in suspects])
        return {index: fault for index, fault in zip(suspects, faults, strict=True) if fault}


def _quick_check(files: ImageFiles, images: Iterable[int]) -> dict[int, Fault]:
    """The images whose own files are bad by their header or end, and why."""
    faults = ((index, inspect(files.own[index]).fault) for index in images)
    return {index: fault for index, fault in faults if fault and fault not in USABLE}
