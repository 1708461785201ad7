"""What a JPEG file's markers say, without decoding it: enough to know what a decoder will do with it.

A decoder library that meets a broken file in the middle of a run ends the run (DALI does), and some
files that it takes in silence are not what they seem. 20,000 files/s from the page cache on one core.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

HEAD = 1 << 16
"""Bytes read first; nearly every header ends within them."""

TAIL = 1 << 12
"""Bytes at the end in which the end marker is looked for: some writers append after it."""

MAX_PIXELS = 1 << 26
"""192 MiB of RGB; cameras give fewer. A file of a hundredth of that can claim any number of pixels."""

MAX_SIDE = 65_500
"""Pixels; libjpeg's own limit."""

MAX_BYTES = 1 << 28
"""Of a file: more than MAX_PIXELS take at the best quality."""

MAX_HEADER = 1 << 22
"""Bytes before the compressed data, where metadata lie; a decoder walks through them marker by marker."""

MAX_SCANS = 64
"""Each makes a decoder go through the whole image again. Progressive files have about ten."""

PIXELS_PER_BYTE = 512
"""At the most: a block of 8 x 8 takes one bit at the least."""

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN = b"\xff\xda"
START_OF_SCAN = SCAN[1]
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those three are tables, not frames
ALONE = {*range(0xD0, 0xD8), 0x01}
"""Markers without a length."""

SEGMENTS = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Markers that libjpeg reads or skips before the data. It refuses all others, so what is behind them,
which it would read otherwise than we do, is never looked at."""


class Fault(StrEnum):
    """What is wrong, or remarkable, with a file. Only the REMARKS can be trained on."""

    EMPTY = "empty"
    NOT_JPEG = "not a JPEG"
    HEADER_CUT = "header cut short"
    TRUNCATED = "truncated"
    UNDECODABLE = "does not decode"
    STALLED = "does not decode in time"
    UNREADABLE = "unreadable"
    DANGLING = "dangling link"
    GONE = "gone"
    NOT_A_FILE = "not a file"
    CMYK = "CMYK"
    UNSUPPORTED = "unsupported coding"
    TOO_LARGE = "too large"
    TOO_MANY_SCANS = "too many scans"
    TOO_SMALL = "too small for the crop"
    GREY = "grey"
    PROGRESSIVE = "progressive"

    @property
    def usable(self) -> bool:
        return self in REMARKS


REMARKS = frozenset({Fault.GREY, Fault.PROGRESSIVE})
DECODER_FAULTS = frozenset({Fault.UNDECODABLE, Fault.STALLED})
"""What only a decoder finds."""


@dataclass(frozen=True)
class Report:
    """width, height: 0 where unknown. size: bytes of the file as it was looked at."""

    fault: Fault | None
    width: int = 0
    height: int = 0
    size: int = 0


def inspect(path: str) -> Report:
    """Reads the header and the end of a file. Never raises for what the file holds."""
    try:
        # Asked before it is opened: opening a pipe may wait, and a device do anything.
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            hidden = stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK)
            return Report(Fault.UNREADABLE if hidden else Fault.NOT_A_FILE)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Report(Fault.DANGLING if os.path.islink(path) else Fault.GONE)  # noqa: PTH114
    except OSError:
        return Report(Fault.UNREADABLE)
    try:
        return replace(_inspect(descriptor, status.st_size), size=status.st_size)
    except OSError:
        return Report(Fault.UNREADABLE)
    finally:
        os.close(descriptor)


def _inspect(descriptor: int, size: int) -> Report:
    if size == 0:
        return Report(Fault.EMPTY)
    head = os.pread(descriptor, HEAD, 0)
    if not head.startswith(START):
        return Report(Fault.NOT_JPEG)
    header = _header(head)
    if header is None and size > HEAD:
        head = os.pread(descriptor, MAX_HEADER, 0)
        header = _header(head)
    if header is None:
        return Report(Fault.HEADER_CUT)
    tail = head[-TAIL:] if len(head) == size else os.pread(descriptor, TAIL, size - TAIL)
    fault = _fault(header, size, tail)
    if (fault is None or fault.usable) and header.scans > 1:
        scans = head.count(SCAN) if len(head) == size else _count_scans(descriptor, size)
        fault = Fault.TOO_MANY_SCANS if scans > MAX_SCANS else fault
    return Report(fault, header.width, header.height)


class _Header(NamedTuple):
    """What the frame header says. scans: 1 where the first scan holds all, else 2, for more than one."""

    kind: int
    precision: int
    height: int
    width: int
    components: int
    scans: int


def _fault(header: _Header, size: int, tail: bytes) -> Fault | None:
    pixels = header.height * header.width
    if pixels == 0:
        return Fault.HEADER_CUT
    if header.kind not in (BASELINE, EXTENDED, PROGRESSIVE) or header.precision != 8:
        return Fault.UNSUPPORTED
    if pixels > MAX_PIXELS or max(header.height, header.width) > MAX_SIDE or size > MAX_BYTES:
        return Fault.TOO_LARGE
    if END not in tail or pixels > PIXELS_PER_BYTE * size:
        return Fault.TRUNCATED
    if header.components == 4:
        return Fault.CMYK
    if header.components not in (1, 3):
        return Fault.UNSUPPORTED
    if header.components == 1:
        return Fault.GREY
    return Fault.PROGRESSIVE if header.kind == PROGRESSIVE else None


def _header(head: bytes) -> _Header | None:
    """The frame header, and what kind of scan follows; None where one of them is missing."""
    frame = None
    offset = len(START)
    while offset + 10 <= len(head):
        if head[offset] != 0xFF:
            return None
        marker = head[offset + 1]
        if marker in SEGMENTS or (marker in FRAMES and frame is None):
            if marker in FRAMES:
                frame = offset
            length = head[offset + 2] << 8 | head[offset + 3]
            if length < 2:
                return None
            offset += 2 + length
        elif marker == START_OF_SCAN and frame is not None:
            precision, high, low, wide, narrow, components = head[frame + 4 : frame + 10]
            kind = head[frame + 1]
            whole = head[offset + 4] == components and kind != PROGRESSIVE
            return _Header(
                kind, precision, high << 8 | low, wide << 8 | narrow, components, 1 if whole else 2
            )
        elif marker == 0xFF:  # fill
            offset += 1
        elif marker in ALONE:
            offset += 2
        else:
            return None
    return None


def _count_scans(descriptor: int, size: int) -> int:
    """Scan markers in the file, in pieces: compressed data never hold one by chance."""
    count, end = 0, b""
    for offset in range(0, size, MAX_HEADER):
        piece = end + os.pread(descriptor, MAX_HEADER, offset)
        count += piece.count(SCAN)
        end = piece[-1:]
    return count
