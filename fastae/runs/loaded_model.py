"""Loads a run's trained model, for `reconstruct`, `export`, `report` and callers in Python."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from torch import nn

from fastae.config import TrainConfig
from fastae.device.choose import find_device
from fastae.errors import FastaeError
from fastae.experiment.definition import ModelMaker, experiment_with
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.weights import read_weights
from fastae.utils.console import log
from fastae.utils.paths import user_folder


@dataclass(frozen=True)
class LoadedModel:
    """The trained model of a run."""

    run: RunFolder
    config: TrainConfig

    iteration: int
    """The number of steps that the model was trained for."""

    model: nn.Module
    """The model in evaluation mode, in float32."""


def load_model(
    path: str | Path, device: str | torch.device = "cpu", model: ModelMaker | None = None
) -> LoadedModel:
    """Returns the model of the run folder `path` with its newest valid weights. Invalid weights are logged.

    The weights are from model.safetensors, unless a checkpoint is newer.

    Args:
        path: the run's folder.
        device: the device of the model.
        model: makes the model, if the run was trained with one of your own.

    Raises:
        FastaeError: `path` is not a run folder, the model is not the article's and was not passed, there are
            no weights of the model's shapes, or the device does not exist.
    """
    device = find_device(device)
    run = RunFolder(user_folder(path, "path"))
    description, experiment = run.read_description(), experiment_with(model)
    experiment.require_model(description.model, f"the run in {str(path)!r}")
    config = description.config
    size = (config.image_size, config.latent)
    meta = experiment.build_meta(*size)  # takes no memory yet: config.json may claim any size
    found = []
    if run.weights_file.exists():
        try:
            found = [read_weights(run.weights_file, meta)]
        except (OSError, ValueError) as error:
            log(f"{run.weights_file} cannot be used: {error}; using the newest checkpoint")
    # Reading a checkpoint takes three times as long, since it also holds Adam's moments.
    if not found or found[0][0] < (checkpoint.latest(run.checkpoints) or 0):
        newest = checkpoint.newest(run.checkpoints, log, lambda trained: meta)
        found += [(newest.iteration, newest.training.model)] if newest else []
    if not found:
        raise FastaeError(f"{str(path)!r} holds no usable checkpoint: train it longer, or restore one")
    iteration, weights = max(found, key=itemgetter(0))
    # A user's own model may have tensors that are not in its state dict. Those of `meta` have no values.
    trained = experiment.build(*size, config.seed).to(device) if model else meta.to_empty(device=device)
    trained.load_state_dict(weights)
    return LoadedModel(run, config, iteration=iteration, model=trained.eval())
