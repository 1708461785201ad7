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
from fastae.errors import FastaeError
from fastae.model import AutoEncoder, meta_model
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.utils.console import printable, say
from fastae.utils.files import require_file

WEIGHTS = "model.safetensors"
"""A finished run's weights, in its folder; the file's metadata name the iteration."""

Weights = Mapping[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """model: in evaluation mode, float32. iteration: how many steps it was trained for."""

    run: RunFolder
    config: TrainConfig
    iteration: int
    model: AutoEncoder


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """The model of the run folder `path`, with its newest whole weights.

    Raises FastaeError if `path` is no run folder or holds no weights yet, or if they do not have the shapes
    that its config.json implies.
    """
    run = RunFolder(Path(path))
    config = run.settings()
    model = meta_model(config.image_size, config.latent)  # no memory yet: config.json may claim any size
    newest = _newest_weights(run, model)
    if newest is None:
        raise FastaeError(f"{str(path)!r} holds no usable checkpoint: train it longer, or restore one")
    iteration, weights = newest
    model.to_empty(device=device).load_state_dict(weights)
    return LoadedModel(run, config, iteration, model.eval())


def _newest_weights(run: RunFolder, model: AutoEncoder) -> tuple[int, Weights] | None:
    """(iteration, weights) that fit the model: of model.safetensors, unless a checkpoint is newer.

    Those that are damaged, or do not fit, are logged.
    """
    final = _read_safetensors(run.path / WEIGHTS, model)
    if final and final[0] >= (checkpoint.latest(run.checkpoints) or 0):
        return final  # reading a checkpoint would take three times as long: it holds Adam's moments, too
    candidates = [final] if final else []
    if state := checkpoint.newest(run.checkpoints, say, model):
        candidates.append((state["iteration"], state["model"]))
    return max(candidates, key=itemgetter(0), default=None)


def _read_safetensors(path: Path, model: AutoEncoder) -> tuple[int, Weights] | None:
    if not path.exists():
        return None
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            iteration = int(file.metadata()["iteration"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checkpoint.require_weights(weights, model)
        return iteration, weights
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        say(f"{printable(str(path))} cannot be used: {error}; using the newest checkpoint")
        return None
