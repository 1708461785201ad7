"""What can be wrong with an image file, and the limits that any image must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_PIXELS = 1 << 26
"""The maximum pixels of an image: 192 MiB of RGB, more than cameras give. A header may claim any number."""

MAX_SIDE = 65_500
"""The maximum side of an image in pixels, which is also libjpeg's limit."""

MAX_FILE_BYTES = 1 << 28
"""The maximum size of a file in bytes: more than MAX_PIXELS take at the best quality, or as a PNG."""

MAX_METADATA = 1 << 22
"""The maximum bytes of a JPEG before its compressed data, and of a PNG without its image data."""


class Fault(StrEnum):
    """The fault of a file, or a peculiarity of one that can be trained on (`USABLE`)."""

    EMPTY = "empty"
    NOT_IMAGE = "not a JPEG or PNG"
    HEADER_CUT = "header cut short"
    END_MISSING = "end marker missing"
    TRUNCATED = "truncated"
    UNDECODABLE = "does not decode"
    STALLED = "does not decode in time"
    UNREADABLE = "unreadable"
    DANGLING = "dangling link"
    GONE = "gone"
    NOT_A_FILE = "not a file"
    TOO_LARGE = "too large"
    TOO_MANY_SCANS = "too many scans"
    TOO_MUCH_METADATA = "too much metadata"
    TOO_SMALL = "too small for the crop"
    CMYK = "CMYK"
    DEEP = "more than 8 bits per channel"
    UNSUPPORTED = "unsupported coding"
    AVIF = "AVIF"
    BMP = "BMP"
    GIF = "GIF"
    HEIC = "HEIC"
    JPEG_2000 = "JPEG 2000"
    JPEG_XL = "JPEG XL"
    TIFF = "TIFF"
    WEBP = "WebP"
    GRAY = "gray"
    PROGRESSIVE = "progressive"
    TRANSPARENT = "transparent"


USABLE = frozenset({None, Fault.GRAY, Fault.PROGRESSIVE, Fault.TRANSPARENT})
"""The results of an inspection for files that can be trained on."""

DECODER_FAULTS = frozenset({Fault.UNDECODABLE, Fault.STALLED})
"""The faults that only decoding finds."""

CONVERTIBLE = (
    Fault.CMYK, Fault.DEEP, Fault.UNSUPPORTED, Fault.AVIF, Fault.BMP, Fault.GIF, Fault.HEIC, Fault.JPEG_2000,
    Fault.JPEG_XL, Fault.TIFF, Fault.WEBP,
)  # fmt: skip
"""The faults of images that are intact, and that another program can convert."""


@dataclass(frozen=True)
class FileFault:
    """A file and its fault or peculiarity."""

    path: str
    fault: Fault


def count_faults(faults: Sequence[FileFault]) -> str:
    """Returns text such as '3 truncated, 1 empty', with the most frequent fault first, and the remedy."""
    counts = Counter(file.fault for file in faults).most_common()
    text = ", ".join(f"{number:,} {fault.value}" for fault, number in counts)
    return f"{text} ({remedy})" if (remedy := conversion(faults)) else text


def conversion(faults: Iterable[FileFault]) -> str:
    """Returns text that names the formats to convert, and how; "" if there are none."""
    formats = dict.fromkeys(file.fault.value for file in faults if file.fault in CONVERTIBLE)
    return f"convert to 8-bit RGB JPEGs or PNGs: {', '.join(formats)}" if formats else ""


def dimensions_fault(width: int, height: int, least_bytes: float, size: int) -> Fault | None:
    """Compares the dimensions that a header claims with the limits, and with the file's size.

    Args:
        width: the width in pixels.
        height: the height in pixels.
        least_bytes: the fewest bytes that an image of these dimensions takes in the file's format.
        size: the bytes of the file.
    """
    pixels = width * height
    if pixels == 0:
        return Fault.HEADER_CUT
    if pixels > MAX_PIXELS or max(width, height) > MAX_SIDE or size > MAX_FILE_BYTES:
        return Fault.TOO_LARGE
    return Fault.TRUNCATED if least_bytes > size else None
