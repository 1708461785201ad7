"""Where fastae keeps what can be made again: $FASTAE_CACHE, or the user's cache folder.

An entry is a folder with a file `entry.json`, which tells that fastae made it, and of what. A cache folder
may hold other things besides: what has no such file is never removed. An entry is built as a draft, a hidden
folder beside its place, under a lock; so a draft whose lock is free was left by a process that is gone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from fastae.errors import FastaeError
from fastae.utils.console import log
from fastae.utils.environment import __version__
from fastae.utils.files import write_json
from fastae.utils.json import read_json

VARIABLE = "FASTAE_CACHE"
MARKER = "entry.json"
"""The time of its last change is that of the entry's last use."""

LONGEST_NAME = 255
"""Bytes that the name of a file or folder may have on Linux's file systems."""


@dataclass(frozen=True)
class Marker:
    """kind: 'resident', 'faces' or 'checks'. data: of which images. created: UTC. fastae: the version."""

    kind: str
    data: str
    created: str
    fastae: str


@dataclass(frozen=True)
class Entry:
    """name: the same for an entry and its draft. size: bytes on disk. used: seconds since the epoch."""

    name: str
    path: Path
    marker: Marker
    size: int
    used: float

    @property
    def is_draft(self) -> bool:
        return self.path.name != self.name


def cache_folder(named: str | None = None) -> Path:
    """The folder, which need not exist yet: `named` by --cache-dir, else by the variable, else the user's.

    Raises FastaeError for a name that no folder can have.
    """
    folder = Path(named or os.environ.get(VARIABLE) or platformdirs.user_cache_dir("fastae"))
    if "\0" in str(folder) or any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        source = "--cache-dir" if named else f"${VARIABLE}"
        raise FastaeError(
            f"{source} {str(folder)!r:.100} cannot be a folder: "
            f"its name has a NUL in it, or a part of more than {LONGEST_NAME} bytes"
        )
    return folder


def check_records(cache: Path) -> Path | None:
    """Where the quick check's answers are remembered; None where that is not possible."""
    folder = cache / "file-checks"
    with suppress(OSError):
        ensure_entry(folder, "checks", "of every data folder", lambda draft: None)
    return folder if read_marker(folder) else None


def ensure_entry(folder: Path, kind: str, data: str, fill: Callable[[Path], None]) -> None:
    """Has the entry `folder` be there, filled by `fill` on the first call. Raises OSError, and `fill`'s."""
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                with building(folder, kind, data) as draft:
                    fill(draft)
    touch(folder)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Within it no other process has the lock of the entry `folder`; False where one does, without `wait`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        log(f"cache     another process is building {folder.name}: waiting for it")
        lock.acquire()
    try:
        yield True
    finally:
        # Removed while it is held: whoever waits sees that its file is gone, and takes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def building(folder: Path, kind: str, data: str) -> Iterator[Path]:
    """A folder to fill, which is the entry `folder` once the block ends well, and is removed otherwise.

    To be called within `locked`, where there is no such entry. What killed builds left, of any entry, is
    removed first.
    """
    with suppress(FastaeError):
        for entry in entries(folder.parent):
            if entry.is_draft and entry.name != folder.name:
                remove(entry)
    draft = _draft(folder)
    try:
        _delete(draft)
        draft.mkdir(exist_ok=True)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(draft / MARKER, asdict(Marker(kind, data, created, __version__)))
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def touch(folder: Path) -> None:
    """Notes that an entry is used now, where it may be written to."""
    with suppress(OSError):
        os.utime(folder / MARKER)


def entries(cache: Path) -> list[Entry]:
    """What fastae keeps in the folder, drafts included. Raises FastaeError if it cannot be read."""
    try:
        paths = sorted(cache.iterdir()) if cache.is_dir() else []
        return [entry for path in paths if (entry := _entry(path))]
    except OSError as error:
        raise FastaeError(f"cannot read the cache folder {str(cache)!r}: {error.strerror or error}") from None


def read_marker(folder: Path) -> Marker | None:
    """What says that fastae made this folder; None for anything else."""
    try:
        return None if folder.is_symlink() else read_json(folder / MARKER, Marker)
    except (OSError, ValueError):
        return None


def clear(chosen: Iterable[Entry]) -> list[Entry]:
    """Removes these and returns those left because a process is building them. Raises FastaeError."""
    return [entry for entry in chosen if not remove(entry)]


def remove(entry: Entry) -> bool:
    """Removes an entry or a draft; False where a process is building it. Raises FastaeError."""
    folder = entry.path.with_name(entry.name)
    draft = _draft(folder)
    try:
        with locked(folder, wait=False) as mine:
            if mine:
                _delete(draft)
                if not entry.is_draft and read_marker(folder):
                    folder.rename(draft)  # so that an interruption leaves no half of an entry
                    _delete(draft)
            return mine
    except OSError as error:
        raise FastaeError(f"cannot remove {str(entry.path)!r}: {error.strerror or error}") from None


def _draft(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _entry(path: Path) -> Entry | None:
    marker = read_marker(path)
    if marker is None:
        return None
    name = path.name.removeprefix(".").removesuffix(".partial")
    with suppress(OSError):  # it may be removed or renamed just now
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Entry(name, path, marker, size, (path / MARKER).stat().st_mtime)
    return None


def _delete(folder: Path) -> None:
    """Removes a folder that has a marker, and the marker last: what is left of it is still known as ours."""
    if read_marker(folder) is None:
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (folder / MARKER).unlink()
    folder.rmdir()
