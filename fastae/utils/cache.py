"""The cache of files that fastae can make again: $FASTAE_CACHE, or the user's cache folder.

An entry is a folder with a file `entry.json`, which shows that fastae made the folder, and from what data.
A cache folder may hold other things: `fastae cache clear` removes no folder without an `entry.json`. An entry
is built under a lock as a draft, which is a hidden folder beside the entry's path. A draft whose lock is free
was therefore left by a process that died.

`entry.json` also holds digests of the entry's files. They are compared whenever the entry is opened, and an
entry with a file that does not match is rebuilt. CRC-32 misses one accident in four billion, and zlib's
implementation is fast enough: 10 GB are read from the page cache and compared in 2.2 s on two cores.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from fastae.errors import FastaeError
from fastae.utils.console import log
from fastae.utils.environment import __version__
from fastae.utils.files import is_writable, listed, remove_drafts, require_file, write_json
from fastae.utils.json import read_json
from fastae.utils.paths import user_path

CACHE_VARIABLE = "FASTAE_CACHE"
"""The environment variable that names the cache folder."""

MARKER = "entry.json"
"""The file that marks an entry. Its modification time is the time of the entry's last use."""

LEFTOVER = re.compile(r"\.((?:resident|faces)-[\w-]+|file-checks|kernels)\.(?:lock|partial)")
"""The names of an entry's lock and draft."""

KERNELS = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch's variable for torch.compile's cache folder, which is below /tmp if the variable is not set."""

ELF = b"\x7fELF"
"""The first bytes of a library. A linker writes them last."""

LINKING = 30.0
"""The seconds after which a library without its first bytes is not being written any more."""

BLOCK = 1 << 22
"""The bytes of a file that one digest covers."""

READERS = 8
"""Threads that read files: zlib and the kernel release the interpreter lock."""


@dataclass(frozen=True)
class Marker:
    """The content of an entry's `entry.json`."""

    kind: str
    """What the entry holds: 'resident', 'faces', 'checks' or 'kernels'."""

    data: str
    """The data that the entry was made from, in words."""

    fastae: str
    """The version of fastae that built it."""

    digests: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """File name -> CRC-32 of each of the file's blocks when the entry was built."""


@dataclass(frozen=True)
class Entry:
    """An entry of a cache folder, or the draft of one."""

    name: str
    """The entry's name, which its draft shares."""

    path: Path
    marker: Marker

    size: int
    """Bytes on disk."""

    used: float
    """The time of the last use, in seconds since the epoch."""

    @property
    def is_draft(self) -> bool:
        return self.path.name != self.name


def cache_folder(named: str | None = None) -> Path:
    """Returns the cache folder, which need not exist: `named` by --cache-dir, $FASTAE_CACHE, or the user's.

    Raises FastaeError if the folder's name is not a valid path.
    """
    folder = named or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("fastae")
    return Path(user_path(folder, "--cache-dir" if named else f"${CACHE_VARIABLE}"))


def check_records(cache: Path) -> Path | None:
    """Returns the folder for the results of the quick check of data folders; None if it cannot be made."""
    return working_entry(cache / "file-checks", "checks", "of every data folder")


def working_entry(folder: Path, kind: str, data: str) -> Path | None:
    """Makes an entry without digests, for files that change while they are used.

    Returns its folder; None if it cannot be made.
    """
    with suppress(OSError):
        ensure_entry(folder, kind, data, fill=lambda draft: None, fault=lambda folder: None)
    return folder if read_marker(folder) else None


def keep_kernels(cache: Path) -> None:
    """Makes torch.compile keep its kernels in the cache folder, unless the user has set a folder for them."""
    if not os.environ.get(KERNELS):
        folder = working_entry(cache / "kernels", "kernels", "compiled by torch.compile")
        if folder and is_writable(folder):
            os.environ[KERNELS] = str(folder.absolute())
            _remove_unfinished(folder)


def _remove_unfinished(kernels: Path) -> None:
    """Removes the libraries of linkers that were killed: PyTorch would load them, and fail every time."""
    with suppress(OSError):  # another process may remove the folder just now
        for library in filter(Path.is_file, kernels.rglob("*.so")):
            with library.open("rb") as file:
                is_whole = file.read(len(ELF)) == ELF
            if not is_whole and time.time() - library.stat().st_mtime > LINKING:
                library.unlink()


def damage(folder: Path) -> str | None:
    """Returns, in words, how an entry's files differ from their digests; None if they do not.

    All files of the entry are read. Other files in the folder are ignored: file servers add their own.
    """
    marker = read_marker(folder)
    if marker is None or not marker.digests:
        return f"{MARKER} holds no digests"
    try:
        with ThreadPoolExecutor(READERS) as pool:
            for name, digests in marker.digests.items():
                path = folder / name
                # The number of blocks is compared first: a damaged file may have any size.
                if len(_blocks(path)) != len(digests) or _digests(path, pool) != digests:
                    return f"cached files do not match their digests ({name})"
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        return f"cached files cannot be read ({getattr(error, 'strerror', None) or error})"
    return None


def ensure_entry(
    folder: Path,
    kind: str,
    data: str,
    fill: Callable[[Path], None],
    fault: Callable[[Path], str | None] = damage,
) -> None:
    """Builds the entry `folder` unless it exists and has no fault.

    An entry without a fault is not locked, because ranks compare its digests at the same time, and because
    the cache may be read-only.

    Args:
        folder: the entry's path.
        kind: the marker's `kind`.
        data: the marker's `data`.
        fill: writes the entry's files into the draft folder that it is given.
        fault: returns what is wrong with the entry, in words that are logged before it is rebuilt; None if
            nothing is wrong.

    Raises:
        OSError: the entry cannot be written.
        Exception: any error of `fill` and `fault`.
    """

    def reason() -> str | None:
        return fault(folder) if folder.is_dir() else "missing"

    if why := reason():
        if folder.is_dir():
            log(f"{kind:<9} {why}: rebuilding {folder.name}")
        with lock_entry(folder):
            if reason():  # no other process has built it meanwhile
                _build(folder, Marker(kind, data, fastae=__version__), fill)
    with suppress(OSError):  # the cache may be read-only
        os.utime(folder / MARKER)


@contextmanager
def lock_entry(folder: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock of the entry `folder` while the block runs.

    If another process holds the lock, waits for it, or raises filelock's Timeout if `wait` is False.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        log(f"cache     another process is building {folder.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        # The file is removed while it is locked: a waiting process notices that, and makes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def entries(cache: Path) -> list[Entry]:
    """Returns the entries of a cache folder and drafts. Raises FastaeError if the folder cannot be listed."""
    paths = listed(cache) if cache.is_dir() else []
    return [entry for path in paths if (entry := _entry(path))]


def read_marker(folder: Path) -> Marker | None:
    """Returns the marker of an entry; None if fastae did not make the folder."""
    try:
        return None if folder.is_symlink() else read_json(folder / MARKER, Marker)
    except (OSError, ValueError):
        return None


def remove(entry: Entry) -> bool:
    """Removes an entry or a draft; returns False if a process is building it.

    Raises FastaeError if a file cannot be removed.
    """
    folder = entry.path.with_name(entry.name)
    draft = _draft(folder)
    try:
        with lock_entry(folder, wait=False):
            _delete(draft)
            _remove_remains(draft)
            if not entry.is_draft and read_marker(folder):
                folder.rename(draft)  # so that an interruption leaves no empty folder with an entry's name
                _delete(draft)
        return True
    except Timeout:
        return False
    except OSError as error:
        raise FastaeError(f"cannot remove {str(entry.path)!r}: {error.strerror or error}") from None


def remove_leftovers(cache: Path) -> None:
    """Removes locks that nobody holds, and empty drafts, which killed processes left, where it may."""
    for path in listed(cache):
        if left := LEFTOVER.fullmatch(path.name):
            folder = path.with_name(left[1])
            with suppress(Timeout, OSError), lock_entry(folder, wait=False):
                _remove_remains(_draft(folder))


def _remove_remains(draft: Path) -> None:
    """Removes a draft to which a killed process had written no marker yet, or whose marker it had removed."""
    with suppress(OSError):
        remove_drafts(draft)
        draft.rmdir()  # fails unless it is empty


def _build(folder: Path, marker: Marker, fill: Callable[[Path], None]) -> None:
    """Fills a draft, which becomes the entry `folder` once it has the digests of its files.

    If that fails, the draft is removed. Drafts of other entries that killed processes left are removed first.
    Files that a power failure keeps from the disk do not match their digests.
    """
    with suppress(FastaeError):
        for entry in entries(folder.parent):
            if entry.is_draft and entry.name != folder.name:
                remove(entry)
    draft = _draft(folder)
    try:
        _clear(draft)
        draft.mkdir()
        write_json(draft / MARKER, asdict(marker))
        fill(draft)
        paths = sorted(path for path in draft.iterdir() if path.name != MARKER)
        with ThreadPoolExecutor(READERS) as pool:
            digests = {path.name: _digests(path, pool) for path in paths}
        write_json(draft / MARKER, asdict(replace(marker, digests=digests)))
        _clear(folder)
        draft.rename(folder)
    finally:
        with suppress(OSError):
            _clear(draft)


def _blocks(path: Path) -> range:
    """Returns the offsets of a file's blocks. Raises OSError, also if it is not a regular file."""
    require_file(path)
    return range(0, path.stat().st_size, BLOCK)


def _digests(path: Path, pool: Executor) -> list[int]:
    """Returns the CRC-32 of each of a file's blocks. Raises OSError if the file cannot be read."""
    return list(pool.map(partial(_digest, path), _blocks(path)))


def _digest(path: Path, start: int) -> int:
    # The file is read rather than mapped: a failing disk then raises an error and does not kill the process.
    with path.open("rb") as file:
        file.seek(start)
        return zlib.crc32(file.read(BLOCK))


def _discard(path: Path) -> None:
    """Removes a folder, a file or a link, if it exists. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _draft(folder: Path) -> Path:
    """Returns the path of the draft of the entry `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def _entry(path: Path) -> Entry | None:
    """Returns the entry, or the draft, at `path`; None if there is none."""
    if marker := read_marker(path):
        name = path.name.removeprefix(".").removesuffix(".partial")
        with suppress(OSError):  # another process may remove or rename it just now
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            return Entry(name, path, marker, size=size, used=(path / MARKER).stat().st_mtime)
    return None


def _clear(path: Path) -> None:
    """Removes an entry or a draft, its marker last, or whatever else is at its path."""
    _delete(path)
    _discard(path)


def _delete(folder: Path) -> None:
    """Removes the folder of an entry or a draft; does nothing if the folder has no marker.

    The marker is removed last, so that a folder whose removal is interrupted is still recognised.
    """
    if read_marker(folder):
        for path in folder.iterdir():
            if path.name != MARKER:
                _discard(path)
        shutil.rmtree(folder)
