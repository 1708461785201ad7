"""Loads a run's trained model, for `reconstruct`, `export`, `report` and callers in Python."""

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
from fastae.experiment.model import AutoEncoder, meta_model
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.utils.console import log, printable
from fastae.utils.files import require_file
from fastae.utils.paths import expand_home

UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""The errors that reading a damaged model.safetensors, or another file of this name, can raise."""


@dataclass(frozen=True)
class LoadedModel:
    """The trained model of a run."""

    run: RunFolder
    config: TrainConfig

    iteration: int
    """The number of steps that the model was trained for."""

    model: AutoEncoder
    """The model in evaluation mode, in float32."""


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Returns the model of the run folder `path` with its newest valid weights. Invalid weights are logged.

    The weights are from model.safetensors, unless a checkpoint is newer.

    Raises:
        FastaeError: `path` is not a run folder, it has no weights of the shapes that its config.json implies,
            or the device does not exist.
    """
    device = find_device(device)
    run = RunFolder(expand_home(Path(path)))
    config = run.read_config()
    model = meta_model(config.image_size, config.latent)  # no memory yet: config.json may claim any size
    found = _final_weights(run.weights_file, model)
    # Reading a checkpoint takes three times as long, since it also holds Adam's moments.
    if not found or found[0][0] < (checkpoint.latest(run.checkpoints) or 0):
        newest = checkpoint.newest(run.checkpoints, log, lambda trained: model)
        found += [(newest.iteration, newest.training["model"])] if newest else []
    if not found:
        raise FastaeError(f"{str(path)!r} holds no usable checkpoint: train it longer, or restore one")
    iteration, weights = max(found, key=itemgetter(0))
    model.to_empty(device=device).load_state_dict(weights)
    return LoadedModel(run, config, iteration=iteration, model=model.eval())


def finished_at(run: RunFolder) -> int | None:
    """Returns the iteration of a finished run's weights; None if there are none that can be read."""
    try:
        require_file(run.weights_file)
        with safe_open(run.weights_file, framework="pt") as file:
            return int(file.metadata()["iteration"])
    except UNREADABLE:
        return None


def _final_weights(path: Path, model: AutoEncoder) -> list[tuple[int, Mapping[str, Any]]]:
    """Returns [(iteration, weights)] of a model.safetensors that fits the model; [] if there is none."""
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
