"""Which texts can be a path, and what ~ means in one.

Texts are checked once, where they come in: later, each would fail in a way of its own, with ValueError,
UnicodeEncodeError or OSError, depending on who uses the path first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from fastae.errors import SettingError

NAME_BYTES = 255
"""Linux's NAME_MAX: the most bytes of a file's or folder's name."""

PATH_BYTES = 4095
"""Linux's PATH_MAX, without the zero at the end."""


URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def require_path(text: str, name: str) -> None:
    """Raises SettingError, naming the argument `name`, for a URL and for what no file system can have."""
    if not text:
        raise SettingError(name, "is empty: name a file or folder")
    if URL.match(text):
        raise SettingError(
            name, f"{text!r:.200} is a URL: only local files and folders are read, so copy it to one"
        )
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise SettingError(name, f"{text!r:.60} cannot be a path: it is not valid Unicode") from None
    if b"\0" in encoded:
        raise SettingError(name, f"{text!r:.60} cannot be a path: it holds a NUL character")
    if max(map(len, encoded.split(b"/"))) > NAME_BYTES:
        raise SettingError(name, f"{text!r:.60}... has a name of more than {NAME_BYTES} bytes: shorten it")
    if len(encoded) > PATH_BYTES:
        raise SettingError(name, f"{text!r:.60}... has more than {PATH_BYTES:,} bytes: shorten it")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder instead of ~ or ~USER, as shells replace them."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises for a user that does not exist)


def texts(paths: Iterable[str | os.PathLike[str]], name: str) -> list[str]:
    """Paths as strings, without ~. Raises SettingError, naming the argument `name`, for anything else."""
    found = []
    for path in paths:
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str):
            raise SettingError(name, f"must hold paths, not {text!r:.60}")
        require_path(text, name)
        found.append(os.path.expanduser(text) if text.startswith("~") else text)  # noqa: PTH111
    return found
