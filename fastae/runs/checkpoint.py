"""The states of a run on disk: checkpoints/ITERATION.pt, each with its SHA-256 beside it.

Plain tensors and numbers, which `torch.load(weights_only=True)` reads: a checkpoint cannot run code. Each
is written beside its place, flushed to the disk and renamed, and older ones go only after that, so that a
whole one is there at every moment. One that is torn or flipped is recognised, and the one before is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from fastae.errors import FastaeError
from fastae.runs.archive import require_plain
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write, require_file, sync_folder
from fastae.utils.json import convert

LAST = "last.pt"
"""A link to the newest, for people and scripts; resuming looks at the numbers."""

PARTS = {"model": dict, "optimizer": dict, "scaler": dict, "iteration": int, "config": dict, "run": dict}
"""What a checkpoint holds. run: data, device, versions, as in config.json."""

State = dict[str, Any]


def write(folder: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a state, whole and on the disk when this returns, then removes all but the last `keep`.

    Raises OSError if it cannot be written; nothing else has changed then.
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


def newest(folder: Path, warn: Callable[[str], None], model: nn.Module | None = None) -> State | None:
    """The newest whole state in `folder`, on the CPU; None if there is none.

    warn: told in one line of each newer one that is damaged.
    model: whose state it must be, in shapes and types; the meta device will do.
    """
    paths = _numbered(folder)
    for path in paths:
        try:
            state = _read(path)
            if model:
                _require_fit(state, model, path)
            return state
        except FastaeError as error:
            warn(f"{error}; the checkpoint before it is tried" if path is not paths[-1] else str(error))
    return None


def moments_like(weight: Tensor) -> dict[str, Tensor]:
    """What fused Adam keeps of a weight, by name: tensors of the same shape, type, device and layout."""
    return {"step": weight.new_empty(()), "exp_avg": weight, "exp_avg_sq": weight}


def tensors(state: Mapping[str, Any]) -> dict[tuple, Any]:
    """The weights and Adam's moments in a state, by their places. Raises ValueError for another structure."""
    moments = state["optimizer"].get("state")
    if not isinstance(moments, dict) or not all(isinstance(kept, dict) for kept in moments.values()):
        raise ValueError("it has no optimizer state")
    return {("model", name): value for name, value in state["model"].items()} | {
        ("optimizer", index, name): value for index, kept in moments.items() for name, value in kept.items()
    }


def is_finite(state: Mapping[str, Any]) -> bool:
    """Whether all weights and moments are."""
    return all(value.isfinite().all() for value in tensors(state).values())


def _require_fit(state: State, model: nn.Module, path: Path) -> None:
    """Raises FastaeError, naming what is wrong, if this cannot be a state of training `model`.

    Adam's kernel does not look: with moments of other shapes it reads and writes memory that is not theirs.
    """
    kept = {index: moments_like(weight) for index, weight in enumerate(model.parameters())}
    expected = tensors({"model": model.state_dict(), "optimizer": {"state": kept}})
    try:
        found = tensors(state)
        _require_alike(found, expected)
        if any((value < 0).any() for place, value in found.items() if place[-1] in ("step", "exp_avg_sq")):
            raise ValueError("Adam's steps or mean squares are negative")
        _require_scaler(state["scaler"])
    except ValueError as error:
        raise FastaeError(
            f"checkpoint {path} does not fit its run's config.json, or is from an older version of fastae: "
            f"{error}"
        ) from None


def require_weights(weights: Mapping[str, Any], model: nn.Module) -> None:
    """Raises ValueError, which names the first difference, if these are not finite weights of `model`."""
    _require_alike(
        {("model", name): value for name, value in weights.items()},
        {("model", name): value for name, value in model.state_dict().items()},
    )


def _require_alike(found: Mapping[tuple, Any], expected: Mapping[tuple, Tensor]) -> None:
    for verb, places in (
        ("lacks", expected.keys() - found.keys()),
        ("has", found.keys() - expected.keys()),
    ):
        if places:
            raise ValueError(f"it {verb} {min(map(_in_words, places))}")
    for place, value in found.items():
        if fault := _fault(value, expected[place]):
            raise ValueError(f"{_in_words(place)} {fault}")


def _fault(value: Any, like: Tensor) -> str:
    """What is wrong with a value that should be a tensor of this shape and type, and finite; else ''."""
    if not isinstance(value, Tensor):
        return "is no tensor"
    if (value.shape, value.dtype) != (like.shape, like.dtype):
        return f"is {value.dtype} {tuple(value.shape)}, not {like.dtype} {tuple(like.shape)}"
    if value.untyped_storage().nbytes() < value.nbytes:
        return "is one number many times"
    return "" if value.isfinite().all() else "is not finite"


@dataclass(frozen=True)
class _Scaler:
    """What a GradScaler keeps where it is enabled; else nothing."""

    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    _growth_tracker: int


def _require_scaler(state: Mapping[str, Any]) -> None:
    if state:
        convert(state, _Scaler)
        for name, value in state.items():
            if not 0 <= value < (2**31 if isinstance(value, int) else math.inf):
                raise ValueError(f"the loss scaler's {name} cannot be {value!r:.60}")


def _in_words(place: tuple) -> str:
    return f"{' '.join(map(str, place)):.100}"


def write_weights(path: Path, state: Mapping[str, Any]) -> None:
    """The model's weights alone, as safetensors: for those who only use the model. Raises OSError."""
    weights = {name: value.contiguous() for name, value in state["model"].items()}
    metadata = {"iteration": str(state["iteration"]), "fastae": __version__}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(weights, metadata))


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


def latest(folder: Path) -> int | None:
    """The iteration of the newest checkpoint, whole or not."""
    found = _numbered(folder)
    return int(found[0].stem) if found else None


def _read(path: Path) -> State:
    """The verified state of one file. Raises FastaeError if it is damaged or not one of ours."""
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
    if state["iteration"] != int(path.stem):
        raise FastaeError(f"checkpoint {path} is of iteration {state['iteration']!r:.30}")
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
