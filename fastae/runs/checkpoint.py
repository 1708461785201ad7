"""The checkpoints of a run: checkpoints/ITERATION.safetensors.

A checkpoint is one file with its own digest (`fastae.runs.tensors`), which holds tensors and JSON, so it
cannot run code. It is written to a temporary file, flushed to the disk and renamed, and older ones are
removed only then, so that a valid checkpoint exists at every moment. If one is damaged, the checkpoint before
it is used.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.runs.description import RunDescription
from fastae.runs.tensors import read_tensors, write_tensors
from fastae.utils.files import listed, mode_at, sync
from fastae.utils.json import parse

SUFFIX = ".safetensors"

MAX_SECONDS = 1e15
"""A limit for the time of a run, since a file may say that it is infinite."""


@dataclass(frozen=True)
class TrainingState:
    """What a training step changes."""

    model: Mapping[str, Tensor]
    """The model's state dict."""

    mean: Mapping[str, Tensor]
    """Name of a weight -> Adam's moving mean of its gradient."""

    square: Mapping[str, Tensor]
    """Name of a weight -> Adam's moving mean of its squared gradient."""

    step: Tensor
    """The number of Adam's updates: an int64 scalar."""

    scaler: Mapping[str, float | int] = field(default_factory=dict)
    """The state dict of the GradScaler; empty if losses are not scaled."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors, with the names that they have in a checkpoint's file."""
        parts = {"model": self.model, "mean": self.mean, "square": self.square}
        named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return {**named, "step": self.step}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], scaler: Mapping[str, float | int]) -> TrainingState:
        """Returns the state whose `tensors()` are given. Raises ValueError if they are none of a state."""
        if "step" not in tensors:
            raise ValueError("it does not contain the state of training")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "mean": {}, "square": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part in parts:
                parts[part][name] = value
        return cls(**parts, step=tensors["step"], scaler=scaler)

    def copied(self) -> TrainingState:
        """Returns a copy in the host's memory."""
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in self.tensors().items()}
        return TrainingState.of(tensors, dict(self.scaler))

    @property
    def is_finite(self) -> bool:
        """Whether all weights and moments are finite."""
        return all(bool(value.isfinite().all()) for value in self.tensors().values())


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run continues."""

    iteration: int
    """The number of steps that the run was trained for."""

    training: TrainingState
    description: RunDescription

    seconds: float = 0.0
    """The time of training in all sessions, with evaluations and saving. --minutes limits it."""


@dataclass(frozen=True)
class _State:
    """What a checkpoint's file contains besides tensors, as JSON in its metadata."""

    iteration: int

    run: dict[str, Any]
    """The description of the run, as in config.json."""

    seconds: Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
    scaler: dict[str, float | int]


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint to the disk, and then removes all but the last `keep` checkpoints.

    Checkpoints of later iterations are removed, too: a run that continues from an older one has found them
    invalid. Raises OSError if the checkpoint cannot be written; no other checkpoint is changed then.
    """
    training = checkpoint.training
    state = _State(
        checkpoint.iteration,
        run=checkpoint.description.as_dict(),
        seconds=checkpoint.seconds,
        scaler=dict(training.scaler),
    )
    path = folder / f"{checkpoint.iteration:07d}{SUFFIX}"
    write_tensors(path, training.tensors(), {"state": json.dumps(asdict(state))})
    sync(folder)
    remove_later(folder, checkpoint.iteration)
    keep_newest(folder, keep)


def remove_later(folder: Path, iteration: int) -> None:
    """Removes the checkpoints of later iterations, which have been found invalid. Raises OSError."""
    for path in numbered(folder):
        if int(path.stem) > iteration:
            path.unlink(missing_ok=True)


def keep_newest(folder: Path, count: int) -> None:
    """Removes all but the newest checkpoints. Raises OSError."""
    for old in numbered(folder)[count:]:
        old.unlink(missing_ok=True)


def latest(folder: Path) -> int | None:
    """Returns the iteration of the newest checkpoint, valid or not; None if there is none."""
    paths = numbered(folder)
    return int(paths[0].stem) if paths else None


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
    paths = numbered(folder)
    for path in paths:
        try:
            return _read(path, model_of)
        except FastaeError as error:
            warn(f"{error}; the checkpoint before it is tried" if path is not paths[-1] else str(error))
    return None


def _read(path: Path, model_of: Callable[[TrainConfig], nn.Module] | None) -> Checkpoint:
    """Reads and verifies one checkpoint. Raises FastaeError if it is damaged or does not fit its model."""
    try:
        content = read_tensors(path)
        state: _State = parse(content.metadata.get("state", ""), _State)
        if state.iteration != int(path.stem):
            raise ValueError(f"it holds iteration {state.iteration:,}")
        description = RunDescription.from_dict(state.run, "it")
        if model_of:
            _require_fit(content.tensors, state.scaler, model_of(description.config))
        training = TrainingState.of(content.tensors, state.scaler)
    except (OSError, ValueError, FastaeError) as error:
        reason = " ".join(str(error).split())
        raise FastaeError(f"checkpoint {path} cannot be used: {reason:.200}") from None
    return Checkpoint(state.iteration, training, description=description, seconds=state.seconds)


def numbered(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, valid or not, the newest first.

    The name of each, without its suffix, is its iteration. Raises FastaeError if the folder cannot be listed.
    """
    found = [
        path
        for path in listed(folder)
        if path.suffix == SUFFIX and path.stem.isdecimal() and stat.S_ISREG(mode_at(path))
    ]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _require_fit(tensors: Mapping[str, Tensor], scaler: Mapping[str, float | int], model: nn.Module) -> None:
    """Raises ValueError, naming the first difference, unless this can be the state of training `model`.

    Adam's kernel does not check shapes: with moments of other shapes it reads and writes beyond their memory.
    """
    weights = dict(model.named_parameters())
    step = torch.empty((), dtype=torch.int64, device="meta")
    require_alike(tensors, TrainingState(model.state_dict(), weights, weights, step).tensors())
    for name, value in tensors.items():
        if name.startswith(("step", "square/")) and (value < 0).any():
            raise ValueError(f"{name} is negative")
    _require_scaler(scaler)


def require_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming the first difference, unless both have the same names, shapes and types.

    The tensors in `found` must also be finite. Those in `expected` may be on the meta device.
    """
    if differing := found.keys() ^ expected.keys():
        name = min(differing)
        raise ValueError(f"it {'has' if name in found else 'lacks'} {name:.100}")
    for name, value in found.items():
        like = expected[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            it_is, should_be = (f"{each.dtype} {tuple(each.shape)}" for each in (value, like))
            raise ValueError(f"{name:.100} is {it_is}, not {should_be}")
        if not value.isfinite().all():
            raise ValueError(f"{name:.100} is not finite")


def _require_scaler(state: Mapping[str, float | int]) -> None:
    """Raises ValueError unless this is the state of a GradScaler, which is empty for a disabled one."""
    like = torch.amp.GradScaler("cpu").state_dict()
    kinds = [{name: type(value) for name, value in each.items()} for each in (state, like)]
    if state and kinds[0] != kinds[1]:
        raise ValueError("the loss scaler's state lacks entries, or has unknown ones")
    for name, value in state.items():
        if not 0 <= value < (2**31 if isinstance(value, int) else math.inf):
            raise ValueError(f"the loss scaler's {name} cannot be {value!r:.60}")
