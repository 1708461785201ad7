"""Inspects an image file without decoding it: whether a decoder will accept it, and its width and height.

The format follows from the content, whatever the file's name is.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import NamedTuple

from fastae.data.files import jpeg, png
from fastae.data.files.faults import Fault
from fastae.utils.limits import require_files

OTHER_FORMATS = re.compile(
    rb"""GIF8[79]a(?P<GIF>) | RIFF....WEBP(?P<WEBP>) | BM....\0{4}(?P<BMP>) | (?:II[*+]\0|MM\0[*+])(?P<TIFF>)
    | ....ftyp(?:avi[fs](?P<AVIF>)|(?:he..|mif1|msf1)(?P<HEIC>))
    | (?:\0\0\0\x0cjP\ \ |\xff\x4f\xff\x51)(?P<JPEG_2000>) | (?:\0\0\0\x0cJXL\ |\xff\n)(?P<JPEG_XL>)""",
    re.DOTALL | re.VERBOSE,
)
"""How the files of other image formats begin. Each group is named like its `Fault`."""

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png",
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""The suffixes of image files, in lower case."""

NO_CONTENT = frozenset({Fault.EMPTY, Fault.NOT_IMAGE, Fault.NOT_A_FILE, Fault.DANGLING, Fault.GONE})
"""The faults of files whose content is not that of an image."""


class Inspection(NamedTuple):
    """The result of `inspect`."""

    fault: Fault | None

    width: int = 0
    """Width in pixels, 0 if unknown."""

    height: int = 0
    """Height in pixels, 0 if unknown."""

    size: int = 0
    """Bytes of the file when it was opened."""


def inspect(path: str) -> Inspection:
    """Reads the headers of a file, and its end. The content of a file never raises an error.

    Raises FastaeError if the process has too many files open, since that is not the file's fault.
    """
    try:
        # The type is checked before opening: opening a pipe may block, and opening a device may do anything.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            hidden = stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK)
            return Inspection(Fault.UNREADABLE if hidden else Fault.NOT_A_FILE)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        require_files(error)
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            return Inspection(Fault.UNREADABLE)
        return Inspection(Fault.DANGLING if os.path.islink(path) else Fault.GONE)
    try:
        return Inspection(*_inspect(descriptor, status.st_size), status.st_size)
    except OSError:
        return Inspection(Fault.UNREADABLE)
    finally:
        os.close(descriptor)


def _inspect(descriptor: int, size: int) -> tuple[Fault | None, int, int]:
    """The fault, width and height of an open file of `size` bytes."""
    if size == 0:
        return Fault.EMPTY, 0, 0
    head = os.pread(descriptor, jpeg.HEAD, 0)
    if head.startswith(jpeg.START):
        return jpeg.inspect(descriptor, size, head)
    if head.startswith(png.START):
        return png.inspect(descriptor, size, head)
    other = OTHER_FORMATS.match(head)
    return Fault[other.lastgroup] if other and other.lastgroup else Fault.NOT_IMAGE, 0, 0


def is_image(path: str, fault: Fault | None) -> bool:
    """Whether a file that was found in a folder is meant to be an image, by its content or else its name."""
    return fault not in NO_CONTENT or path.lower().endswith(SUFFIXES)
