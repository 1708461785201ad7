"""Writes files and folders that are either complete or absent: a draft is renamed to the final path.

Every file that a command writes into the folder of a run, a sweep or a report is opened here. Somebody else
may have made that folder, and put links under the names that fastae writes. Therefore no link is followed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from filelock import FileLock, Timeout

from fastae.errors import FastaeError

DRAFT = ".partial-"
"""The prefix of drafts: files that are being written, or that a killed process left."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file that appears at `path` if the block succeeds, and leaves nothing otherwise.

    Args:
        path: the final path.
        durable: whether the file must survive a power failure, at the cost of some milliseconds.

    Raises:
        OSError: the file cannot be written, or a link, a device, a pipe or a folder is at `path`.
    """
    with draft(path) as partial, open_own(partial, "w") as file:
        yield file
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Yields an empty file beside `path` that becomes `path` if the block succeeds, else is removed.

    This is for libraries that write to a path. The draft's name cannot be guessed, and has the suffix of
    `path`. Raises OSError as `atomic_write` does.
    """
    _require_regular(path)
    partial = draft_of(path)
    open_own(partial, "x").close()
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def draft_of(path: Path) -> Path:
    """Returns a path for a draft beside `path`, whose name is new and cannot be guessed."""
    return path.with_name(f"{DRAFT}{secrets.token_hex(8)}-{path.name}")


def open_own(path: Path, mode: Literal["x", "w", "a"]) -> BinaryIO:
    """Opens a binary file for writing, as Python's `open` does with this mode.

    Raises OSError, without following a link or waiting for a pipe, if something other than a regular file is
    at `path`.
    """
    _require_regular(path)
    flags = {"x": os.O_EXCL, "w": os.O_TRUNC, "a": os.O_APPEND}[mode] | os.O_WRONLY | os.O_CREAT
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    return cast(BinaryIO, os.fdopen(handle, mode + "b"))


def _require_regular(path: Path) -> None:
    """Raises OSError if something other than a regular file is at `path`."""
    mode = mode_at(path)
    if mode and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a link" if stat.S_ISLNK(mode) else "it is not a file")


def mode_at(path: Path) -> int:
    """Returns the mode of what is at `path`, without following a link; 0 if nothing is there.

    Raises OSError if that cannot be found out. `Path.exists` returns False then, from Python 3.14 on.
    """
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def remove_drafts(folder: Path, name: str = "") -> None:
    """Removes the drafts in `folder` that a killed process left: of files whose names end with `name`.

    The folder need not exist.
    """
    for path in listed(folder):
        if path.name.startswith(DRAFT) and path.name.endswith(name) and not stat.S_ISDIR(mode_at(path)):
            path.unlink(missing_ok=True)


def refuse_links(folder: Path) -> None:
    """Raises FastaeError, naming the link, if `folder` has one.

    Through a link, the author of the folder could make fastae overwrite or remove any file of the user.
    """
    for path in listed(folder):
        if path.is_symlink():
            raise FastaeError(f"{str(path)!r} is a link, which fastae does not follow here: remove it")


def listed(folder: Path) -> list[Path]:
    """Returns the paths in a folder; [] if it does not exist. Raises FastaeError if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FastaeError(f"folder {str(folder)!r} cannot be listed: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, by `atomic_write`."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def require_file(path: Path) -> None:
    """Raises OSError if `path` exists and is not a regular file, since opening a pipe would block."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")


def open_unblocked(path: str) -> BufferedReader:
    """Opens a file for reading bytes, without waiting for a pipe, which is then empty. Raises OSError."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk, so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hold_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of `folder` while the block runs. The kernel releases it if the process dies.

    Args:
        folder: the folder, which contains the lock's file.
        what: the kind of process that holds the lock, such as 'run', for messages.

    Raises:
        FastaeError: another process holds the lock, or the lock's file cannot be made.
    """
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise FastaeError(f"{str(folder)!r} is locked by another {what}: wait for it, or stop it") from None
    except OSError as error:
        raise FastaeError(f"cannot write the {what} folder {str(folder)!r}: {error}") from None
    with held:
        yield


@contextmanager
def made_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Makes a folder at `path`, unless it exists, and yields its path.

    With `new`, it is made at the first of PATH, PATH-2, PATH-3, ... that does not exist. When the block
    ends, the folder and its parents are removed, if they were made here and are empty. Raises OSError if the
    folder cannot be made.
    """
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    missing = [folder for folder in path.parents if not folder.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process has made it meanwhile
                folder.mkdir()
                made.insert(0, folder)
        for folder in chain([path], numbered if new else []):
            with suppress(FileExistsError):
                folder.mkdir()
                made.insert(0, folder)
                break
        yield folder
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def nearest_existing(path: Path) -> Path:
    """Returns `path` if it exists, else the nearest of its parents that does, as an absolute path."""
    candidates = (path, *path.absolute().parents)
    return next(each for each in candidates if os.path.exists(each))  # noqa: PTH110 (False without permission)


def require_new_folder(path: Path, option: str) -> None:
    """Raises FastaeError, naming `option`, unless `path` is an empty folder or could be made as one."""
    parent = nearest_existing(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise FastaeError(f"{option} {str(path)!r} cannot be made: {str(parent)!r} is not a writable folder")
    if listed(path):
        raise FastaeError(f"{option} {str(path)!r} is not empty: name a new folder")


def is_writable(folder: Path) -> bool:
    """Returns whether files can be made in a folder, or could be if the disk were not full.

    The folder is made if it does not exist.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
