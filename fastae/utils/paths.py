"""Paths as users write them: with `~`, and possibly none that a file system can have.

They are checked once, where they come in: later, each would fail in a way of its own, with ValueError,
UnicodeEncodeError or OSError, depending on who uses the path first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from fastae.errors import FastaeError, SettingError

PathText = TypeVar("PathText", str, Path)

NAME_BYTES = 255
"""Linux's NAME_MAX: the most bytes of a file's or folder's name."""

PATH_BYTES = 4095
"""Linux's PATH_MAX, without the zero at the end."""

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def expand_home(path: PathText) -> PathText:
    """The path with a leading `~` or `~NAME` replaced by that user's home folder, as a shell does it.

    As there, a `~NAME` of no user stays as it is. Raises FastaeError if the own home folder is not known.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises for an unknown user)
    if expanded.split("/", 1)[0] == "~":
        raise FastaeError(
            f"{str(path)!r}: the home folder is not known; set HOME, or name the folder in full"
        )
    return Path(expanded) if isinstance(path, Path) else expanded


def user_path(text: str, name: str) -> str:
    """What a user wrote, as a path without `~`.

    Raises SettingError, naming the argument `name`, for a URL and for what no file system can have.
    """
    if not text:
        raise SettingError(name, "is empty: name a file or folder")
    if URL.match(text):
        raise SettingError(
            name, f"{text!r:.200} is a URL: only local files and folders are read, so copy it to one"
        )
    if "\0" in text:
        raise SettingError(name, f"{text!r:.60} cannot be a path: it holds a NUL character")
    try:
        encoded = os.fsencode(expand_home(text))
    except UnicodeEncodeError:
        raise SettingError(name, f"{text!r:.60} cannot be a path: it is not valid Unicode") from None
    if max(map(len, encoded.split(b"/"))) > NAME_BYTES:
        raise SettingError(name, f"{text!r:.60}... has a name of more than {NAME_BYTES} bytes: shorten it")
    if len(encoded) > PATH_BYTES:
        raise SettingError(name, f"{text!r:.60}... has more than {PATH_BYTES:,} bytes: shorten it")
    return os.fsdecode(encoded)


def texts(paths: Iterable[str | os.PathLike[str]], name: str) -> list[str]:
    """Paths as strings, without `~`. Raises SettingError, naming the argument `name`, for anything else."""
    found = []
    for path in paths:
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str):
            raise SettingError(name, f"must hold paths, not {text!r:.60}")
        found.append(user_path(text, name))
    return found
