"""Where fastae keeps what can be made again: $FASTAE_CACHE, or the user's cache folder.

An entry is a folder with a file `entry.json`, which shows that fastae made it, and from what. A cache folder
may hold other things: `fastae cache clear` removes no folder without such a file. An entry is built as a
draft, a hidden folder beside its place, under a lock; so a draft whose lock is free was left by a process
that died.

`entry.json` also holds digests of the entry's files. They are compared whenever the entry is opened, and one
that does not match is built again. CRC-32 finds every accident but one in four billion, and zlib's is fast
enough: 10 GB are read from the page cache and compared in 2.2 s on two cores.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from fastae.errors import FastaeError
from fastae.utils.console import log
from fastae.utils.environment import __version__
from fastae.utils.files import require_file, sync_folder, write_json
from fastae.utils.json import read_json
from fastae.utils.paths import user_path

VARIABLE = "FASTAE_CACHE"
MARKER = "entry.json"
"""Its modification time is the entry's last use."""

KERNELS = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch's variable for the folder of what torch.compile made; without it that is below /tmp."""

BLOCK = 1 << 22
"""Bytes of a file that one digest covers."""

THREADS = 8
"""Threads that read and flush files: zlib and the kernel release the interpreter lock."""


@dataclass(frozen=True)
class Marker:
    """kind: 'resident', 'faces' or 'checks'. data: the images it was made from. created: UTC.

    digests: file name -> CRC-32 of each of its blocks, as the files were when the entry was built.
    """

    kind: str
    data: str
    created: str
    fastae: str
    digests: Mapping[str, Sequence[int]] = field(default_factory=dict)


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


def is_writable(cache: Path) -> bool:
    """Whether an entry can be begun there, which makes the folder; a full disk is another matter."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return True
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_records(cache: Path) -> Path | None:
    """The folder in which the quick check remembers its answers; None if it cannot be made."""
    return working_entry(cache / "file-checks", "checks", "of every data folder")


def working_entry(folder: Path, kind: str, data: str) -> Path | None:
    """An entry whose files change with every use, and so have no digests; None if it cannot be made."""
    with suppress(OSError):
        ensure_entry(folder, kind, data, lambda draft: None, lambda folder: None)
    return folder if read_marker(folder) else None


def keep_kernels(cache: Path) -> None:
    """Has torch.compile keep what it makes in the cache folder, unless the user has named a folder for it."""
    if not os.environ.get(KERNELS):
        folder = working_entry(cache / "kernels", "kernels", "compiled by torch.compile")
        if folder and os.access(folder, os.W_OK | os.X_OK):
            os.environ[KERNELS] = str(folder.absolute())


def damage(folder: Path) -> str | None:
    """How an entry's files differ from what was written, in words; None if every bit is the same.

    Reads all of them. What else lies in the folder does not matter: file servers keep notes of their own.
    """
    marker = read_marker(folder)
    if marker is None or not marker.digests:
        return f"{MARKER} holds no digests"
    recorded = {folder / name: digests for name, digests in marker.digests.items()}
    try:
        # First by their number: a file may claim any size.
        differing = [path for path, digests in recorded.items() if len(_blocks(path)) != len(digests)]
        if not differing:
            found = _digests(recorded)
            differing = [path for path, digests in recorded.items() if found[path] != digests]
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        return f"cached files cannot be read ({getattr(error, 'strerror', None) or error})"
    if differing:
        more = f" and {len(differing) - 1:,} more" if differing[1:] else ""
        return f"cached files do not match their digests ({differing[0].name}{more})"
    return None


def ensure_entry(
    folder: Path,
    kind: str,
    data: str,
    fill: Callable[[Path], None],
    fault: Callable[[Path], str | None] = damage,
) -> None:
    """Makes the entry `folder`, filled by `fill`, unless it is there and nothing is wrong with it.

    fault: tells what is wrong with an entry, in words that are logged before it is built again, or None. An
    entry that is in order is not locked: ranks compare its digests at the same time, and the cache may be
    read-only. Raises OSError, and the errors of `fill` and `fault`.
    """

    def reason() -> str | None:
        return fault(folder) if folder.is_dir() else "missing"

    if why := reason():
        if folder.is_dir():
            log(f"{kind:<9} {why}: rebuilding {folder.name}")
        with locked(folder):
            if reason():  # no other process has built it meanwhile
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
    """A folder to fill with files, which becomes the entry `folder` if the block succeeds, else is removed.

    The entry appears once its files and their digests are on the disk. To be used within `locked`. What
    killed builds of any entry left is removed first.
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
        marker = Marker(kind, data, created, __version__)
        write_json(draft / MARKER, asdict(marker))
        yield draft
        paths = sorted(path for path in draft.iterdir() if path.name != MARKER)
        digests = {path.name: digests for path, digests in _digests(paths).items()}
        _flush(paths)
        write_json(draft / MARKER, asdict(replace(marker, digests=digests)))
        sync_folder(draft)
        _swap(draft, folder)
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


def _blocks(path: Path) -> range:
    """Where the blocks of a file begin. Raises OSError, also for what is no file."""
    require_file(path)
    return range(0, path.stat().st_size, BLOCK)


def _digests(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """The CRC-32 of each block of these files. Raises OSError."""
    blocks = [(path, start) for path in paths for start in _blocks(path)]
    digests: dict[Path, list[int]] = {path: [] for path in paths}
    with ThreadPoolExecutor(THREADS) as pool:
        for (path, _), digest in zip(blocks, pool.map(_digest, blocks), strict=True):
            digests[path].append(digest)
    return digests


def _digest(block: tuple[Path, int]) -> int:
    # Read rather than mapped: a disk that fails is then an error, and not the end of the process.
    path, start = block
    with path.open("rb") as file:
        file.seek(start)
        return zlib.crc32(file.read(BLOCK))


def _flush(paths: Iterable[Path]) -> None:
    """Flushes files to the disk. Raises OSError."""

    def flush(path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(THREADS) as pool:  # 2,000 files: 0.2 s instead of 0.6 s
        list(pool.map(flush, paths))


def _swap(draft: Path, folder: Path) -> None:
    """Puts a draft at the place of an entry, and removes what lay there; of a link, not what it leads to.

    That is renamed first, so that a run which reads the files of the entry misses them for a moment only.
    """
    old = _draft(folder.with_name(f"{folder.name}.old"))
    _discard(old)
    with suppress(FileNotFoundError):
        folder.rename(old)
    draft.rename(folder)
    sync_folder(folder.parent)
    _discard(old)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
