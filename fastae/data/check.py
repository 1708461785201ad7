"""Finds the files of a data set that cannot be trained on, before training meets them.

The quick check reads header and end of each file and remembers the answer by size and time of change,
so that only new files are read the next time; training makes it too. The deep check has every file decoded as
well, by the decoder that trains.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastae.data.jpeg import Fault, Report, inspect
from fastae.utils.console import track
from fastae.utils.files import atomic_write

if TYPE_CHECKING:
    from fastae.data.decode import Decoder

FAULTS = list(Fault)

Stamp = tuple[int, int]
"""Of a file: bytes, nanoseconds of the last change (63 bits of them: a file may be dated in any year)."""

VERSION = 3
"""Of the record on disk, and of what `inspect` answers."""

BATCH = 64
"""Images that are decoded at once."""

TOGETHER = 4 * BATCH
"""Images that a loader holds decoded at the same time, as measured."""


@dataclass(frozen=True)
class FileFault:
    """A file and what is wrong or remarkable with it."""

    path: str
    fault: Fault


@dataclass(frozen=True)
class Check:
    """`sizes`: paths to train on -> bytes, in the order given. `findings`: faults and remarks, likewise.

    `side`: the shorter side of the usable images in pixels, where all have the same; else None.
    `heaviest`: bytes of the squares cut out of them, of the TOGETHER largest.
    """

    sizes: dict[str, int]
    findings: list[FileFault]
    side: int | None
    heaviest: int

    @property
    def usable(self) -> list[str]:
        return list(self.sizes)

    @property
    def unusable(self) -> list[FileFault]:
        return [finding for finding in self.findings if not finding.fault.usable]


def check(
    root: str,
    paths: Sequence[str],
    *,
    crop: int | None,
    records: Path | None,
    decoder: Decoder | None = None,
) -> Check:
    """Checks every path; `records` is the folder in which answers are remembered, None for not at all.

    crop: side in pixels below which an image is too small. decoder: has to decode every file as well.
    Raises DecoderError if that decodes nothing.
    """
    reports = dict(zip(paths, _quick(root, paths, records), strict=True))
    faults = {path: _fault(report, crop) for path, report in reports.items()}
    if decoder:
        faults |= _deep([path for path, fault in faults.items() if _usable(fault)], decoder)
    sizes = {path: reports[path].size for path, fault in faults.items() if _usable(fault)}
    sides = [min(reports[path].width, reports[path].height) for path in sizes]
    return Check(
        sizes,
        [FileFault(path, fault) for path, fault in faults.items() if fault],
        side=sides[0] if len(set(sides)) == 1 else None,
        heaviest=sum(3 * (crop or side) ** 2 for side in heapq.nlargest(TOGETHER, sides)),
    )


def stamp(path: str) -> Stamp | None:
    """Tells whether a file is the same as before; None for what cannot be read anyway."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns & (1 << 63) - 1


def _quick(root: str, paths: Sequence[str], records: Path | None) -> list[Report]:
    memory = _Memory(root, records)
    # Taken before a file is looked at: one that changes meanwhile is looked at again the next time.
    stamps = [stamp(path) for path in paths]
    known = [memory.recall(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    unknown = [path for path, report in zip(paths, known, strict=True) if report is None]
    if not unknown:
        return [report for report in known if report]
    fresh = {path: inspect(path) for path in track(unknown, "checking files")}
    reports = [report or fresh[path] for path, report in zip(paths, known, strict=True)]
    memory.keep(paths, stamps, reports)
    return reports


def _deep(paths: Sequence[str], decoder: Decoder) -> dict[str, Fault]:
    faults = track(decoder.faults(paths, together=BATCH), "decoding files", total=len(paths))
    return {path: fault for path, fault in zip(paths, faults, strict=True) if fault}


def _fault(report: Report, crop: int | None) -> Fault | None:
    small = crop is not None and min(report.width, report.height) < crop
    return Fault.TOO_SMALL if small and _usable(report.fault) else report.fault


def _usable(fault: Fault | None) -> bool:
    return fault is None or fault.usable


class _Memory:
    """What was found out about the files of one folder, as one array file.

    A record that cannot be read is as good as none: the files are looked at again.
    """

    def __init__(self, root: str, records: Path | None) -> None:
        self._path = None
        self._known: dict[str, tuple[int, int, int, int, int]] = {}
        if records is None:
            return
        name = hashlib.sha256(os.path.abspath(root).encode(errors="surrogateescape")).hexdigest()  # noqa: PTH100
        self._path = records / f"{name[:32]}-v{VERSION}.npz"
        with suppress(Exception):  # whatever the parsers of a damaged or foreign file raise
            with np.load(self._path, allow_pickle=False) as record:
                paths, rows = os.fsdecode(record["paths"].tobytes()).split("\0"), record["rows"]
            if rows.dtype == np.int64 and rows.shape[1:] == (5,) and (rows[:, 2] < len(FAULTS)).all():
                self._known = dict(zip(paths, map(tuple, rows.tolist()), strict=True))

    def recall(self, path: str, stamp: Stamp | None) -> Report | None:
        known = self._known.get(path)
        if known is None or known[:2] != stamp:
            return None
        fault = known[2]
        return Report(FAULTS[fault] if fault >= 0 else None, known[3], known[4], known[0])

    def keep(self, paths: Sequence[str], stamps: Sequence[Stamp | None], reports: Sequence[Report]) -> None:
        if self._path is None:
            return
        kept = [
            (path, (*stamp, FAULTS.index(report.fault) if report.fault else -1, report.width, report.height))
            for path, stamp, report in zip(paths, stamps, reports, strict=True)
            if stamp is not None
        ]
        names = np.frombuffer(os.fsencode("\0".join(path for path, _ in kept)), np.uint8)
        rows = np.array([row for _, row in kept], np.int64).reshape(-1, 5)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                np.savez(file, paths=names, rows=rows)
        except OSError:
            pass  # a cache that cannot be written costs time, never a run
