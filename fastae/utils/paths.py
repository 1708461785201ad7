"""Checks paths that users write, which may begin with `~`, and may not be valid in any file system.

Paths are checked once, at the entry points. Later an invalid path would raise ValueError, UnicodeEncodeError
or OSError, depending on which function uses it first.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from fastae.errors import FastaeError, SettingError

NAME_BYTES = 255
"""Linux's NAME_MAX: the most bytes that the name of a file or folder has."""

PATH_BYTES = 4095
"""Linux's PATH_MAX, without the zero at the end."""

PATH_FOLDERS = 500
"""The most folders of a path: Python makes folders by recursion, which has a limit of 1,000 calls."""

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def _expand_home(path: str) -> str:
    """Returns the path with a leading `~` or `~NAME` replaced by the user's home folder, as a shell does it.

    As in a shell, `~NAME` is kept if there is no user NAME. Raises FastaeError if the user's own home folder
    is not known.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises for an unknown user)
    if expanded.split("/", 1)[0] == "~":
        raise FastaeError(f"{path!r}: the home folder is not known: set HOME, or write the full path")
    return expanded


def user_path(text: str, name: str) -> str:
    """Returns a path that a user wrote, with `~` expanded.

    Raises SettingError, naming the argument `name`, for a URL and for a path that no file system can have.
    """
    if not text:
        raise SettingError(name, "is empty: name a file or folder")
    if URL.match(text):
        raise SettingError(
            name, f"{text!r:.200} is a URL: only local files and folders are read, so download it first"
        )
    path = _expand_home(text)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        encoded = b"\0"
    names = encoded.split(b"/")
    is_too_long = len(encoded) > PATH_BYTES or max(map(len, names)) > NAME_BYTES or len(names) > PATH_FOLDERS
    if b"\0" in encoded or is_too_long:
        raise SettingError(
            name, f"{text!r:.60} is not a valid path: it is too long, or contains NUL or invalid Unicode"
        )
    return path


def shell_word(text: str | Path) -> str:
    """Returns a text, such as a path, as one word of a command that a user can paste into bash."""
    if str(text).isprintable():
        return shlex.quote(str(text))
    plain = b"".join(
        bytes([byte]) if 32 <= byte < 127 and byte not in b"'\\" else b"\\x%02x" % byte
        for byte in os.fsencode(text)
    )
    return f"$'{plain.decode()}'"


def user_folder(path: object, name: str) -> Path:
    """Returns a path that a user passed as the argument `name`. Raises SettingError as `texts` does."""
    return Path(*texts([path], name))


def texts(paths: Iterable[object], name: str) -> list[str]:
    """Returns paths as strings, with `~` expanded.

    Raises SettingError, naming the argument `name`, for values that are not valid paths.
    """
    found = []
    for path in paths:
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str):
            raise SettingError(name, f"must contain paths, not {path!r:.60}")
        found.append(user_path(text, name))
    return found
