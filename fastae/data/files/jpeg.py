"""Inspects a JPEG: its header, and whether it ends with its end marker.

A broken file ends DALI's whole pipeline. Pillow's header parser cannot replace this one: with the same check
of the file's end, it reads 34,000 CelebA files/s on one core, and this parser 62,000. Of 3,000 broken JPEGs,
Pillow's parser accepts 207 that DALI and this parser reject.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from fastae.data.files.faults import MAX_METADATA, USABLE, Fault, dimensions_fault

HEAD = 1 << 16
"""The number of bytes that are read first. Nearly every header ends within them."""

TAIL = 1 << 12
"""The number of bytes at the end of a file that are searched for the end marker first."""

MAX_SCANS = 64
"""The maximum scans of a file. A decoder passes over the image for each. Progressive files have about 10."""

PIXELS_PER_BYTE = 512
"""The maximum pixels per byte of a file: a block of 8 x 8 pixels takes at least one bit."""

MAX_SEGMENTS = 1 << 16
"""The maximum number of segments of a file that are read. A camera's files have a few dozen."""

START, SCAN, END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
START_OF_SCAN, END_OF_IMAGE = SCAN[1], END[1]
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those three are tables, not frames
SEGMENTS = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Markers that libjpeg reads or skips before the data. It rejects all others, and so does this parser."""

STANDALONE = {*range(0xD0, 0xD8), 0x00, 0x01, 0xFF}
MARKER = re.compile(rb"(?:\xff++[\x01\xd0-\xd7])*+\xff++[^\x00\xff]")
"""The marker of a segment, after fill bytes and standalone markers."""

DATA_END = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
"""The marker that ends the data of a scan, in which every byte 255 is followed by 0."""


def inspect(descriptor: int, size: int, head: bytes) -> tuple[Fault | None, int, int]:
    """Returns the fault, width and height of an open JPEG.

    Args:
        descriptor: the open file.
        size: the bytes of the file.
        head: its first HEAD bytes.
    """
    header = _read_header(head)
    if header is None and size > HEAD:
        head = os.pread(descriptor, MAX_METADATA, 0)
        header = _read_header(head)
    if header is None:
        return Fault.HEADER_CUT, 0, 0
    fault = _header_fault(header, size)
    if fault in USABLE:
        fault = _end_fault(header, head, descriptor, size=size) or fault
    return fault, header.width, header.height


class _Header(NamedTuple):
    """The content of a frame header, and where its scans begin."""

    kind: int
    """The frame's marker: BASELINE, PROGRESSIVE, ..."""

    precision: int
    """Bits per sample."""

    height: int
    width: int

    components: int
    """The number of color channels."""

    first_scan: int
    """The offset of the first scan's header."""

    several_scans: bool
    """Whether the image may consist of several scans."""


def _read_header(head: bytes) -> _Header | None:
    """Parses the header. Returns None unless it has a frame header that is followed by a scan."""
    frame = None
    for marker, offset in islice(_segments(head, len(START)), MAX_SEGMENTS):
        if marker in FRAMES and frame is None:
            frame = offset
        elif marker == START_OF_SCAN and frame is not None and offset + 10 <= len(head):
            precision, high, low, wide, narrow, components = head[frame + 4 : frame + 10]
            kind = head[frame + 1]
            several = head[offset + 4] != components or kind == PROGRESSIVE
            height, width = high << 8 | low, wide << 8 | narrow
            return _Header(kind, precision, height, width, components, offset, several)
        elif marker not in SEGMENTS:
            return None
    return None


def _header_fault(header: _Header, size: int) -> Fault | None:
    least_bytes = header.height * header.width / PIXELS_PER_BYTE
    if fault := dimensions_fault(header.width, header.height, least_bytes, size):
        return fault
    if header.kind not in (BASELINE, EXTENDED, PROGRESSIVE):
        return Fault.UNSUPPORTED
    if header.precision != 8:
        return Fault.DEEP
    if header.components == 4:
        return Fault.CMYK
    if header.components not in (1, 3):
        return Fault.UNSUPPORTED
    if header.components == 1:
        return Fault.GRAY
    return Fault.PROGRESSIVE if header.kind == PROGRESSIVE else None


def _end_fault(header: _Header, head: bytes, descriptor: int, size: int) -> Fault | None:
    tail = head[-TAIL:] if len(head) == size else os.pread(descriptor, TAIL, size - TAIL)
    if END in tail and not header.several_scans:
        return None
    # The end marker may be followed by a camera's preview or a phone's video.
    data = head if len(head) == size else os.pread(descriptor, size, 0)
    scans, ended = _count_scans(data, header.first_scan)
    if header.several_scans and scans > MAX_SCANS:
        return Fault.TOO_MANY_SCANS
    return None if ended or END in tail else Fault.END_MISSING


def _count_scans(data: bytes, first: int) -> tuple[int, bool]:
    """Counts the scans from offset `first` on. Also returns whether the end marker follows the last one.

    If the segments cannot be parsed to the end, every later occurrence of the scan marker is counted.
    """
    scans, last = 0, first
    for marker, offset in islice(_segments(data, first), MAX_SEGMENTS):
        if marker == END_OF_IMAGE:
            return scans, True
        scans += marker == START_OF_SCAN
        last = offset
    return scans + data.count(SCAN, last + 1), False


def _segments(data: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Yields (marker, offset) of each segment from `offset` on. A scan's data belong to its segment."""
    while offset + 2 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker in STANDALONE:
            match = MARKER.match(data, offset)
            if match is None:
                return
            offset, marker = match.end() - 2, data[match.end() - 1]
        yield marker, offset
        length = int.from_bytes(data[offset + 2 : offset + 4])
        if length < 2:  # DALI rejects this even where libjpeg does not
            return
        offset += 2 + length
        if marker == START_OF_SCAN:
            match = DATA_END.search(data, offset)
            if match is None:
                return
            offset = match.start()
