"""Where fastae keeps what can be made again: $FASTAE_CACHE, or the user's cache folder.

An entry is a folder with a file `entry.json`, which shows that fastae made it, and from what. A cache folder
may hold other things: what has no such file is never removed. An entry is built as a draft, a hidden folder
beside its place, under a lock; so a draft whose lock is free was left by a process that died.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
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
from fastae.utils.paths import user_path

VARIABLE = "FASTAE_CACHE"
MARKER = "entry.json"
"""Its modification time is the entry's last use."""


@dataclass(frozen=True)
class Marker:
    """kind: 'resident', 'faces' or 'checks'. data: the images it was made from. created: UTC."""

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

    Raises FastaeError for what cannot be a path.
    """
    folder = named or os.environ.get(VARIABLE) or platformdirs.user_cache_dir("fastae")
    return Path(user_path(folder, "--cache-dir" if named else f"${VARIABLE}"))


def check_records(cache: Path) -> Path | None:
    """The folder in which the quick check remembers its answers; None if it cannot be made."""
    folder = cache / "file-checks"
    with suppress(OSError):
        ensure_entry(folder, "checks", "of every data folder", lambda draft: None)
    return folder if read_marker(folder) else None


def ensure_entry(folder: Path, kind: str, data: str, fill: Callable[[Path], None]) -> None:
    """Makes the entry `folder`, filled by `fill`, unless it is there. Raises OSError, and `fill`'s errors."""
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                with building(folder, kind, data) as draft:
                    fill(draft)
    touch(folder)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of the entry `folder`; yields False if another process does and `wait` is not set."""
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
        # Removed while it is held: a process that waits notices that the file is gone, and takes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def building(folder: Path, kind: str, data: str) -> Iterator[Path]:
    """A folder to fill, which becomes the entry `folder` if the block succeeds, and is removed otherwise.

    To be used within `locked`. What killed builds of any entry left is removed first.
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
    """Notes that an entry is used now, if it is writable."""
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
    """None for a folder that fastae did not make."""
    try:
        return None if folder.is_symlink() else read_json(folder / MARKER, Marker)
    except (OSError, ValueError):
        return None


def remove(entry: Entry) -> bool:
    """Removes an entry or a draft; returns False if a process is building it. Raises FastaeError."""
    folder = entry.path.with_name(entry.name)
    draft = _draft(folder)
    try:
        with locked(folder, wait=False) as is_ours:
            if is_ours:
                _delete(draft)
                if not entry.is_draft and read_marker(folder):
                    folder.rename(draft)  # so that an interruption leaves no half of an entry
                    _delete(draft)
            return is_ours
    except OSError as error:
        raise FastaeError(f"cannot remove {str(entry.path)!r}: {error.strerror or error}") from None


def _draft(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _entry(path: Path) -> Entry | None:
    if marker := read_marker(path):
        name = path.name.removeprefix(".").removesuffix(".partial")
        with suppress(OSError):  # it may be removed or renamed just now
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            return Entry(name, path, marker, size, (path / MARKER).stat().st_mtime)
    return None


def _delete(folder: Path) -> None:
    """Removes a folder that has a marker, and the marker last: what is left of it is still known as ours."""
    if read_marker(folder):
        for path in folder.iterdir():
            if path.name != MARKER:
                path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
        shutil.rmtree(folder)
