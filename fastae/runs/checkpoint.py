"""The checkpoints of a run: checkpoints/ITERATION.pt, each with its SHA-256 in a file beside it.

Checkpoints hold plain tensors and numbers, which `torch.load(weights_only=True)` reads, so they cannot run
code. Each is written to a temporary file, flushed to the disk and renamed, and older ones are removed only
then, so that a valid checkpoint exists at every moment. A damaged one is recognised by its SHA-256, and the
checkpoint before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, cast

import torch
from msgspec import Meta
from torch import Tensor, nn

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.runs.archive import require_plain
from fastae.runs.description import RunDescription
from fastae.runs.metrics import LoggedContent
from fastae.utils.files import atomic_write, draft_of, listed, remove_drafts, require_file, sync
from fastae.utils.json import convert, plain

LAST = "last.pt"
"""The name of a link to the newest checkpoint, for people and scripts. fastae itself uses the numbers."""

PARTS = {"model": dict, "optimizer": dict, "scaler": dict, "iteration": int, "config": dict, "run": dict}
"""The entries that every checkpoint has, and their types. `run` is a RunDescription, as in config.json."""


@dataclass(frozen=True)
class Progress:
    """How long a run had been trained, and what its other files contained, when a checkpoint was written."""

    seconds: Annotated[float, Meta(ge=0)] = 0.0
    """The time of steps and waiting for data, in all sessions. If the run took turns with others, it is the
    run's share of that time."""

    metrics: LoggedContent | None = None
    """The content of metrics.csv."""

    events: tuple[str, ...] = ()
    """The names of TensorBoard's event files, one for each session."""


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run continues."""

    iteration: int
    """The number of steps that the run was trained for."""

    training: Mapping[str, Any]
    """The state dicts of model, optimizer and scaler, as `TrainingStep.state` returns them."""

    description: RunDescription
    progress: Progress

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of the checkpoint's file: tensors and plain values."""
        run = {"config": self.description.config.as_dict(), "run": self.description.as_dict()}
        return {**self.training, "iteration": self.iteration, **run, "progress": asdict(self.progress)}


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint to the disk, and then removes all but the last `keep` checkpoints.

    Checkpoints of later iterations are removed, too: a run that continues from an older one has found them
    invalid. Raises OSError if the checkpoint cannot be written; no other checkpoint is changed then.
    """
    path = folder / f"{checkpoint.iteration:07d}.pt"
    with atomic_write(path) as file:
        output = _Output(file)
        torch.save(checkpoint.as_dict(), cast(IO[bytes], output))
        if output.error:
            raise output.error
        # The digest, in the format of sha256sum, is written first: no checkpoint is ever without one.
        with atomic_write(_digest_of(path)) as beside:
            beside.write(f"{output.digest.hexdigest()}  {path.name}\n".encode())
    sync(folder)
    with suppress(OSError):  # some file systems have no links
        link = draft_of(folder / LAST)
        link.symlink_to(path.name)
        link.replace(folder / LAST)
    found = _numbered(folder)
    invalid = [each for each in found if int(each.stem) > checkpoint.iteration]
    for old in (*invalid, *found[len(invalid) + keep :]):
        old.unlink(missing_ok=True)
        _digest_of(old).unlink(missing_ok=True)


def remove_all(folder: Path) -> None:
    """Removes every checkpoint, its digest and the link to the newest. Raises OSError."""
    (folder / LAST).unlink(missing_ok=True)
    for path in _numbered(folder):
        path.unlink(missing_ok=True)
        _digest_of(path).unlink(missing_ok=True)


class _Output:
    """A file for torch.save that computes the SHA-256 of what is written, and keeps the first OSError.

    torch.save would report another error, about positions in the file, instead of an OSError.
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
        """Does nothing: torch.save needs this method, but `atomic_write` flushes the file."""


def latest(folder: Path) -> int | None:
    """Returns the iteration of the newest checkpoint, valid or not; None if there is none."""
    found = _numbered(folder)
    return int(found[0].stem) if found else None


def newest(
    folder: Path, warn: Callable[[str], None], model_of: Callable[[TrainConfig], nn.Module] | None = None
) -> Checkpoint | None:
    """Returns the newest valid checkpoint in `folder`, on the CPU; None if there is none.

    Args:
        folder: the run's folder of checkpoints.
        warn: is called with one line for each newer checkpoint that is not valid.
        model_of: makes the model of given settings, with whose shapes and types a checkpoint's weights are
            compared. A model on the meta device suffices. None skips the comparison.

    Raises:
        FastaeError: the folder cannot be listed.
    """
    paths = _numbered(folder)
    for path in paths:
        try:
            checkpoint = _read(path)
            if model_of:
                _require_fit(checkpoint.training, model_of(checkpoint.description.config), path)
            return checkpoint
        except FastaeError as error:
            warn(f"{error}; the checkpoint before it is tried" if path is not paths[-1] else str(error))
    return None


def _read(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint. Raises FastaeError if it is damaged or was not written by fastae."""
    try:
        digest = _digest_of(path)
        require_file(digest)
        with path.open("rb") as file:
            if digest.read_text().split()[:1] != [hashlib.file_digest(file, "sha256").hexdigest()]:
                raise FastaeError(f"checkpoint {path} is damaged: its SHA-256 is not the recorded one")
        require_plain(path)
        # Load onto the CPU: the caller chooses the device, and the file must not.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FastaeError:
        raise
    except Exception as error:  # torch.load raises many kinds, with many lines
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FastaeError(f"checkpoint {path} cannot be read: {reason:.120}") from None
    if not isinstance(state, dict) or any(
        not isinstance(state.get(part), kind) for part, kind in PARTS.items()
    ):
        raise FastaeError(f"checkpoint {path} was not written by fastae")
    if state["iteration"] != int(path.stem):
        raise FastaeError(f"checkpoint {path} holds iteration {state['iteration']!r:.30}")
    try:
        described = plain({**state["run"], "config": state["config"]})
        description = RunDescription.from_dict(described, f"checkpoint {path}")
        progress = convert(plain(state.get("progress", {})), Progress)
    except ValueError as error:
        raise FastaeError(f"checkpoint {path} was not written by fastae: {error}") from None
    training = {name: state[name] for name in ("model", "optimizer", "scaler")}
    return Checkpoint(
        iteration=state["iteration"], training=training, description=description, progress=progress
    )


def _numbered(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, the newest first. Raises FastaeError if it cannot be listed."""
    found = [
        path for path in listed(folder) if path.suffix == ".pt" and path.stem.isdecimal() and path.is_file()
    ]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def without_checkpoint(folder: Path) -> list[Path]:
    """Returns the digests in `folder` whose checkpoint is missing. Raises FastaeError if it cannot be listed.

    A digest is not returned if the checkpoint's draft is there, left by a process that was killed while it
    saved.
    """
    paths = listed(folder)
    names = [path.name for path in paths]
    return [
        path
        for path in paths
        if path.suffix == ".sha256" and not any(name.endswith(path.stem) for name in names)
    ]


def remove_unfinished(folder: Path) -> None:
    """Removes the drafts in `folder`, and then the digests that have no checkpoint. Raises OSError."""
    remove_drafts(folder)
    for digest in without_checkpoint(folder):
        digest.unlink(missing_ok=True)


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def moments_like(weight: Tensor) -> dict[str, Tensor]:
    """Returns examples of the tensors that fused Adam keeps for a weight: name -> tensor of the same kind."""
    return {"step": weight.new_empty(()), "exp_avg": weight, "exp_avg_sq": weight}


def is_finite(training: Mapping[str, Any]) -> bool:
    """Returns whether all weights and Adam's moments are finite."""
    return all(value.isfinite().all() for value in _tensors(training).values())


def require_weights(weights: Mapping[str, Any], model: nn.Module) -> None:
    """Raises ValueError, naming the first difference, unless these are finite weights of `model`."""
    found, expected = (
        {("model", name): each[name] for name in each} for each in (weights, model.state_dict())
    )
    _require_alike(found, expected)


def _require_fit(training: Mapping[str, Any], model: nn.Module, path: Path) -> None:
    """Raises FastaeError, naming the first difference, unless this can be the state of training `model`.

    Adam's kernel does not check shapes: with moments of other shapes it reads and writes beyond their memory.
    """
    moments = {index: moments_like(weight) for index, weight in enumerate(model.parameters())}
    expected = _tensors({"model": model.state_dict(), "optimizer": {"state": moments}})
    try:
        found = _tensors(training)
        _require_alike(found, expected)
        if any((value < 0).any() for key, value in found.items() if key[-1] in ("step", "exp_avg_sq")):
            raise ValueError("Adam's steps or mean squares are negative")
        _require_scaler(training["scaler"])
    except ValueError as error:
        raise FastaeError(
            f"checkpoint {path} does not fit its run's config.json, or is from an older version of fastae: "
            f"{error}"
        ) from None


def _tensors(training: Mapping[str, Any]) -> dict[tuple, Any]:
    """Returns the weights and Adam's moments of a training state, by key. Raises ValueError if it has none.

    The keys are ("model", name of the weight) and ("optimizer", index of the weight, name of the moment).
    """
    moments = training["optimizer"].get("state")
    if not isinstance(moments, dict) or not all(isinstance(kept, dict) for kept in moments.values()):
        raise ValueError("it has no optimizer state")
    return {("model", name): value for name, value in training["model"].items()} | {
        ("optimizer", index, name): value for index, kept in moments.items() for name, value in kept.items()
    }


def _require_alike(found: Mapping[tuple, Any], expected: Mapping[tuple, Tensor]) -> None:
    """Raises ValueError unless these are finite tensors of the expected keys, shapes and types."""
    if differing := found.keys() ^ expected.keys():
        key = min(differing, key=str)
        raise ValueError(f"it {'has' if key in found else 'lacks'} {_name(key)}")
    for key, value in found.items():
        like = expected[key]
        if not isinstance(value, Tensor):
            raise ValueError(f"{_name(key)} is not a tensor")
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            it_is, should_be = (f"{each.dtype} {tuple(each.shape)}" for each in (value, like))
            raise ValueError(f"{_name(key)} is {it_is}, not {should_be}")
        if value.untyped_storage().nbytes() < value.nbytes:
            raise ValueError(f"{_name(key)} is an expanded view of fewer numbers")
        if not value.isfinite().all():
            raise ValueError(f"{_name(key)} is not finite")


def _name(key: tuple) -> str:
    """Returns a key of `_tensors` in words."""
    return f"{' '.join(map(str, key)):.100}"


def _require_scaler(state: Mapping[str, Any]) -> None:
    """Raises ValueError unless this is the state of a GradScaler, which is empty for a disabled one."""
    like = torch.amp.GradScaler("cpu").state_dict()
    kinds = [{name: type(value) for name, value in each.items()} for each in (state, like)]
    if state and kinds[0] != kinds[1]:
        raise ValueError("the loss scaler's state lacks entries, or has unknown ones")
    for name, value in state.items():
        if not 0 <= value < (2**31 if isinstance(value, int) else math.inf):
            raise ValueError(f"the loss scaler's {name} cannot be {value!r:.60}")
