"""A run's trained model, for those who use it: reconstruct, export, report and Python callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fastae.config import TrainConfig
from fastae.device.choose import find_device
from fastae.errors import FastaeError
from fastae.model import AutoEncoder, meta_model
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.utils.console import log, printable
from fastae.utils.files import require_file
from fastae.utils.paths import expand_home

UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""What a damaged model.safetensors, or another file in its place, raises."""


@dataclass(frozen=True)
class LoadedModel:
    """model: in evaluation mode, float32. iteration: how many steps it was trained for."""

    run: RunFolder
    config: TrainConfig
    iteration: int
    model: AutoEncoder


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """The model of the run folder `path`, with its newest valid weights; invalid ones are logged.

    They are those of model.safetensors, unless a checkpoint is newer. Raises FastaeError if `path` is not a
    run folder, or has no weights of the shapes that its config.json implies, and for a missing device.
    """
    device = find_device(device)
    run = RunFolder(expand_home(Path(path)))
    config = run.settings()
    model = meta_model(config.image_size, config.latent)  # no memory yet: config.json may claim any size
    found = _final_weights(run.weights, model)
    # Reading a checkpoint takes three times as long: it holds Adam's moments, too.
    if not found or found[0][0] < (checkpoint.latest(run.checkpoints) or 0):
        newest = checkpoint.newest(run.checkpoints, log, lambda trained: model)
        found += [(newest.iteration, newest.training["model"])] if newest else []
    if not found:
        raise FastaeError(f"{str(path)!r} holds no usable checkpoint: train it longer, or restore one")
    iteration, weights = max(found, key=itemgetter(0))
    model.to_empty(device=device).load_state_dict(weights)
    return LoadedModel(run, config, iteration, model.eval())


def finished_at(run: RunFolder) -> int | None:
    """The iteration of the weights that a finished run leaves; None if there are none that can be read."""
    try:
        require_file(run.weights)
        with safe_open(run.weights, framework="pt") as file:
            return int(file.metadata()["iteration"])
    except UNREADABLE:
        return None


def _final_weights(path: Path, model: AutoEncoder) -> list[tuple[int, Mapping[str, Any]]]:
    """(iteration, weights) of a model.safetensors that fits the model; empty without one."""
    if not path.exists():
        return []
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            iteration = int(file.metadata()["iteration"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checkpoint.require_weights(weights, model)
        return [(iteration, weights)]
    except UNREADABLE as error:
        log(f"{printable(str(path))} cannot be used: {error}; using the newest checkpoint")
        return []
