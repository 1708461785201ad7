"""Which texts can be a path. They are checked once, where they come in: later, each would fail in a way of
its own, with ValueError, UnicodeEncodeError or OSError, depending on who uses the path first."""

from __future__ import annotations

import os

from fastae.errors import FastaeError

NAME_BYTES = 255
"""Linux's NAME_MAX: the most bytes of a file's or folder's name."""

PATH_BYTES = 4095
"""Linux's PATH_MAX, without the zero at the end."""


def require_path(text: str, option: str) -> None:
    """Raises FastaeError, naming `option`, for what no file system can have."""
    if not text:
        raise FastaeError(f"{option} is empty: name a file or folder")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise FastaeError(f"{option} {text!r:.60} cannot be a path: it is not valid Unicode") from None
    if b"\0" in encoded:
        raise FastaeError(f"{option} {text!r:.60} cannot be a path: it holds a NUL character")
    if max(map(len, encoded.split(b"/"))) > NAME_BYTES:
        raise FastaeError(f"{option} {text!r:.60}... has a name of more than {NAME_BYTES} bytes: shorten it")
    if len(encoded) > PATH_BYTES:
        raise FastaeError(f"{option} {text!r:.60}... has more than {PATH_BYTES:,} bytes: shorten it")
