"""Inspects a PNG: its header, and the names and lengths of its chunks to the end.

The chunks' content is not read. DALI's decoder compares their CRCs and rejects a PNG with any flipped bit in
its image data, which the deep check and training find. What is inspected here could exhaust memory or time:
OpenCV, by which DALI decodes, allocates the 4 GiB that a chunk may claim, and takes 20 ms for each compressed
text. Of 1,030 broken PNGs (`make fuzz FILES=3000 SEED=1`), this parser rejects 828 and DALI another 100.

Source of the format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import os
import struct
import zlib

from fastae.data.files.faults import MAX_METADATA, Fault, dimensions_fault

START = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">4x4sIIBBBBBI")
"""The first chunk: name, width, height, bit depth, color type, three methods, CRC-32."""

HEADER_START = START + b"\0\0\0\x0dIHDR"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
"""Color type -> number of channels."""

DEPTHS = {GRAY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)}
"""Color type -> bits per channel; 8 or 16 for all others."""

CRITICAL = (b"IDAT", b"IEND", b"PLTE")
IMAGE_DATA = (b"IDAT", b"fcTL", b"fdAT")
"""The image, and the frames of an animation, which are not decoded."""

DEFLATE = 1_032
"""The maximum number of bytes that one byte of deflate's output stands for."""

MAX_CHUNKS = 1 << 16
"""The maximum number of chunks. With libpng's 8 KiB of image data per chunk, this is a file of 512 MiB."""

MAX_METADATA_CHUNKS = 64
"""The maximum number of chunks without image data. Each may take a decoder 20 ms. Files have about five."""


def inspect(descriptor: int, size: int, head: bytes) -> tuple[Fault | None, int, int]:
    """Returns the fault, width and height of an open PNG.

    Args:
        descriptor: the open file.
        size: the bytes of the file.
        head: its first bytes.
    """
    header = head[len(START) : len(START) + HEADER.size]
    if not head.startswith(HEADER_START) or len(header) < HEADER.size:
        return Fault.HEADER_CUT, 0, 0
    _, width, height, depth, color, compression, filtering, interlacing, crc = HEADER.unpack(header)
    is_known = color in CHANNELS and depth in DEPTHS.get(color, (8, 16))
    if zlib.crc32(header[4:-4]) != crc or not is_known or compression or filtering or interlacing > 1:
        return Fault.HEADER_CUT, 0, 0
    if depth == 16:
        return Fault.DEEP, width, height
    rows = height * (1 + width * depth * CHANNELS[color] // 8)  # a row begins with the type of its filter
    fault = dimensions_fault(width, height, rows / DEFLATE, size) or _chunks_fault(descriptor, size, color)
    if not fault and color in (GRAY, GRAY_ALPHA, RGBA):
        fault = Fault.GRAY if color == GRAY else Fault.TRANSPARENT
    return fault, width, height


def _chunks_fault(descriptor: int, size: int, color: int) -> Fault | None:
    """Reads the name and length of each chunk after the header."""
    offset, metadata_bytes, names = len(START) + HEADER.size, 0, list[bytes]()
    incomplete = Fault.HEADER_CUT
    for _ in range(MAX_CHUNKS):
        start = os.pread(descriptor, 8, offset)
        length, name = int.from_bytes(start[:4]), start[4:]
        if name == b"IDAT" and (names.count(b"PLTE") == 1 or color != PALETTE):
            incomplete = Fault.END_MISSING
        offset += 12 + length
        is_critical = name[:1].isupper()
        if offset > size or not name.isalpha() or (is_critical and name not in CRITICAL):
            break
        if name == b"IEND":
            return None if incomplete is Fault.END_MISSING else incomplete
        if name not in IMAGE_DATA:
            names.append(name)
            metadata_bytes += length
            if len(names) > MAX_METADATA_CHUNKS or metadata_bytes > MAX_METADATA:
                return Fault.TOO_MUCH_METADATA
    return incomplete
