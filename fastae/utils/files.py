"""Files and folders that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from fastae.errors import FastaeError


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` if the block succeeds, and leaves nothing otherwise.

    durable: survives a power failure, at the cost of some milliseconds.
    Raises OSError if something else than a file is there: a device or a pipe would be replaced.
    """
    require_file(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def require_file(path: Path) -> None:
    """Raises OSError if `path` is there and no file: opening a pipe would wait, and a device do anything."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")


def sync_folder(folder: Path) -> None:
    """Flushes the names in `folder` to the disk: a renamed file is found after a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(lock: FileLock, folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of `folder` while the block runs; the kernel releases that of a process that dies.

    Raises FastaeError at once if another `what`, a run for example, holds it, or if it cannot be made.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FastaeError(f"another {what} is at work in {str(folder)!r}: wait for it, or stop it") from None
    except OSError as error:
        raise FastaeError(f"cannot write the {what} folder {str(folder)!r}: {error}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def made_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A folder at `path`; with `new`, at the first of PATH, PATH-2, PATH-3, ... that is not there yet.

    It and its parents are removed when the block ends, if they were made here and are empty. Raises OSError.
    """
    names = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    made: list[Path] = []
    try:
        for parent in reversed(path.parents):
            _make(parent, made)
        if new:
            path = next(name for name in names if _make(name, made))
        else:
            _make(path, made)
        yield path
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def _make(folder: Path, made: list[Path]) -> bool:
    """Makes a folder unless it is there, and adds it to `made`; returns whether it was made."""
    try:
        folder.mkdir()
    except OSError:
        if not folder.is_dir():
            raise
        return False
    made.append(folder)
    return True


def require_new_folder(path: Path, option: str) -> None:
    """Raises FastaeError, naming `option`, unless `path` is an empty folder or could be made as one."""
    try:
        used = path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise FastaeError(f"{option} {str(path)!r} cannot be read: {error.strerror}") from None
    if used:
        raise FastaeError(f"{option} {str(path)!r} is not empty: name a new folder")
    if path.exists() and not path.is_dir():
        raise FastaeError(f"{option} {str(path)!r} is a file: name a new folder")
    parent = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise FastaeError(f"{option} {str(path)!r} cannot be made: {str(parent)!r} is no writable folder")
