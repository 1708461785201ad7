"""Finds the files of a data set that cannot be trained on, before training meets them.

The quick check, which training makes too, reads header and end of each file and remembers what it found, so
that the next one reads new and changed files only. The deep check also has every file decoded, by the decoder
that trains.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from fastae.data.files.jpeg import USABLE, Fault, FileFault, Inspection, inspect
from fastae.utils.console import track
from fastae.utils.files import atomic_write, require_file

BATCH = 64
"""Files that the deep check has decoded at once."""

TOGETHER = 4 * BATCH
"""Images that a loader holds decoded at the same time, as measured."""

VERSION = 4
"""Version of the records, and of `inspect`'s answers in them."""

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds, of which 63 bits are kept: a file may have any date."""

Records = dict[bytes, tuple[Stamp, Inspection]]
"""Path -> what was found when the file had that stamp."""


class FaultFinder(Protocol):
    """A decoder, as the deep check uses it."""

    def faults(self, paths: Sequence[str], together: int = 1) -> Iterator[Fault | None]:
        """What is wrong with each of these files, in order; None for those that it decodes.

        together: files that are tried at once, and one by one if that fails.
        """
        ...


@dataclass(frozen=True)
class Check:
    """What was found of some files, in the order in which they were given."""

    sizes: dict[str, int]
    """Paths of the usable files -> bytes."""

    faults: list[FileFault]
    """Of usable and other files."""

    side: int | None
    """The shorter side of the usable images in pixels if all have the same."""

    heaviest: int
    """Bytes of the squares cut out of the TOGETHER largest images."""

    shapes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """(width, height) in pixels -> how many of the usable images have them."""

    @property
    def usable(self) -> list[str]:
        return list(self.sizes)

    @property
    def unusable(self) -> list[FileFault]:
        return [each for each in self.faults if each.fault not in USABLE]


def check(
    root: str,
    paths: Sequence[str],
    *,
    crop: int | None,
    records: Path | None,
    decoder: FaultFinder | None = None,
) -> Check:
    """Checks every path.

    crop: the least pixels of an image's shorter side. records: the folder that keeps what was found, if any.
    decoder: for the deep check; if it decodes nothing at all, DecoderError is raised.
    """
    found = _quick_check(root, paths, records)
    faults = {path: each.fault for path, each in found.items()}
    for path, each in found.items():
        if each.fault in USABLE and crop and min(each.width, each.height) < crop:
            faults[path] = Fault.TOO_SMALL
    if decoder:
        passed = [path for path in paths if faults[path] in USABLE]
        decoded = track(decoder.faults(passed, together=BATCH), "decoding files", total=len(passed))
        faults |= {path: fault for path, fault in zip(passed, decoded, strict=True) if fault}
    usable = [path for path in paths if faults[path] in USABLE]
    sides = [min(found[path].width, found[path].height) for path in usable]
    return Check(
        {path: found[path].size for path in usable},
        [FileFault(path, fault) for path, fault in faults.items() if fault],
        side=sides[0] if len(set(sides)) == 1 else None,
        heaviest=sum(3 * (crop or side) ** 2 for side in heapq.nlargest(TOGETHER, sides)),
        shapes=Counter((found[path].width, found[path].height) for path in usable),
    )


def was_checked(root: str, records: Path | None) -> bool:
    """Whether these records have files below `root`, so that it was checked before; it is not looked at."""
    return records is not None and _records_file(root, records).is_file()


def stamp(path: str) -> Stamp | None:
    """What changes when a file does; None for a file that cannot be read anyway."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns & (1 << 63) - 1


def _quick_check(root: str, paths: Sequence[str], records: Path | None) -> dict[str, Inspection]:
    file = records and _records_file(root, records)
    known = _read_records(file) if file else {}
    # Taken before a file is opened: one that changes meanwhile is inspected again the next time.
    stamps = {path: stamp(path) for path in paths}
    found = {
        path: known[key][1]
        for path in paths
        if (key := os.fsencode(path)) in known and known[key][0] == stamps[path]
    }
    if unknown := [path for path in paths if path not in found]:
        found |= {path: inspect(path) for path in track(unknown, "checking files")}
        if file:
            _write_records(file, {os.fsencode(path): (at, found[path]) for path, at in stamps.items() if at})
    return {path: found[path] for path in paths}


def _records_file(root: str, records: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]  # noqa: PTH100
    return records / f"{name}-v{VERSION}.msgpack"


def _read_records(file: Path) -> Records:
    """None of them if the file is missing or damaged: the images are inspected again."""
    with suppress(Exception):  # whatever a parser raises over a damaged file
        require_file(file)
        return msgspec.msgpack.decode(file.read_bytes(), type=Records)
    return {}


def _write_records(file: Path, records: Mapping[bytes, tuple[Stamp, Inspection]]) -> None:
    with suppress(OSError):  # a cache that cannot be written costs time, never a run
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as output:
            output.write(msgspec.msgpack.encode(records))
