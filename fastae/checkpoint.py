"""The states of a run on disk: checkpoints/ITERATION.pt, each with its SHA-256 beside it.

Plain tensors and numbers, which `torch.load(weights_only=True)` reads: a checkpoint cannot run code. Each
is written beside its place, flushed to the disk and renamed, and older ones go only after that, so that a
whole one is there at every moment. One that is torn or flipped is recognised, and the one before is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from fastae.archive import require_plain
from fastae.errors import FastaeError
from fastae.files import atomic_write, require_file, sync_folder

LAST = "last.pt"
"""A link to the newest, for people and scripts; resuming looks at the numbers."""

PARTS = {"model": dict, "optimiser": dict, "scaler": dict, "iteration": int, "config": dict, "run": dict}
"""What a checkpoint holds. run: data, device, versions, as in config.json."""

State = dict[str, Any]


def write(folder: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a state, whole and on the disk when this returns, then removes all but the last `keep`.

    Raises OSError where it cannot be written; nothing else has changed then.
    """
    path = folder / f"{state['iteration']:07d}.pt"
    with atomic_write(path) as file:
        output = _Output(file)
        torch.save(dict(state), cast(IO[bytes], output))
        if output.error:
            raise output.error
        # As `sha256sum` writes and checks it. It is there before its checkpoint is: none is without.
        with atomic_write(_digest_of(path)) as beside:
            beside.write(f"{output.digest.hexdigest()}  {path.name}\n".encode())
    sync_folder(folder)
    with suppress(OSError):  # a convenience, which some file systems do not have
        link = folder / f".{LAST}.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(folder / LAST)
    for old in _numbered(folder)[keep:]:
        old.unlink(missing_ok=True)
        _digest_of(old).unlink(missing_ok=True)
    return path


def newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """The newest whole state in `folder`, on the CPU; None where there is none.

    warn: told in one line of each newer one that is damaged.
    """
    for path in _numbered(folder):
        try:
            return _read(path)
        except FastaeError as error:
            warn(f"{error}; the checkpoint before it is used")
    return None


class _Output:
    """A file for torch.save, which digests what it writes and keeps the file's own error.

    torch.save would make something else of a full disk: a RuntimeError about positions.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        if self.error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self.error = error
        return len(content)

    def flush(self) -> None:
        """torch.save calls it; `atomic_write` does it."""


def does_not_fit(run: Path) -> FastaeError:
    """For a run whose checkpoint is not of the model that this version makes of its settings."""
    return FastaeError(
        f"the checkpoint in {str(run)!r} does not fit its config.json, or is from an older version of fastae"
    )


def latest(folder: Path) -> int | None:
    """The iteration of the newest checkpoint, whole or not."""
    found = _numbered(folder)
    return int(found[0].stem) if found else None


def _read(path: Path) -> State:
    """The verified state of one file. Raises FastaeError where it is damaged or not one of ours."""
    try:
        require_file(_digest_of(path))
        recorded = _digest_of(path).read_text().split()[:1]
        if recorded != [_sha256(path)]:
            raise FastaeError(f"checkpoint {path} is damaged: its SHA-256 is not the recorded one")
        require_plain(path)
        # To the CPU first: where its tensors then go is the reader's choice, not the file's.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FastaeError:
        raise
    except Exception as error:  # torch.load's own, many-lined: what matters is that it cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FastaeError(f"checkpoint {path} cannot be read: {reason:.120}") from None
    if not isinstance(state, dict) or any(
        not isinstance(state.get(part), kind) for part, kind in PARTS.items()
    ):
        raise FastaeError(f"checkpoint {path} is not one of fastae's")
    return state


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first."""
    found = [path for path in folder.glob("*.pt") if path.stem.isdecimal() and path.is_file()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
