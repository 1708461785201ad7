"""A run's trained model, for those who use it: reconstruct, export, report and Python callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastae import checkpoint
from fastae.config import TrainConfig
from fastae.console import printable, say
from fastae.errors import FastaeError
from fastae.files import require_file
from fastae.model import AutoEncoder, meta_model
from fastae.run import RunFolder

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
    newest = _newest_weights(run)
    if newest is None:
        raise FastaeError(
            f"{str(path)!r} holds no usable checkpoint: it has not been trained long enough yet"
        )
    iteration, weights = newest
    try:
        model = meta_model(config.image_size, config.latent)
    except (RuntimeError, TypeError):
        model = None
    if model is None or not _fits(weights, model):
        raise FastaeError(f"the model in {str(path)!r} does not fit its config.json")
    model.to_empty(device=device).load_state_dict(weights)
    return LoadedModel(run, config, iteration, model.eval())


def _newest_weights(run: RunFolder) -> tuple[int, Weights] | None:
    """(iteration, weights): of model.safetensors, unless a checkpoint is newer. Damaged files are logged."""
    final = _read_safetensors(run.path / WEIGHTS)
    if final and final[0] >= (checkpoint.latest(run.checkpoints) or 0):
        return final  # reading a checkpoint would take three times as long: it holds Adam's moments, too
    candidates = [final] if final else []
    if state := checkpoint.newest(run.checkpoints, say):
        candidates.append((state["iteration"], state["model"]))
    return max(candidates, key=itemgetter(0), default=None)


def _read_safetensors(path: Path) -> tuple[int, Weights] | None:
    if not path.exists():
        return None
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return int(file.metadata()["iteration"]), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        say(f"{printable(str(path))} cannot be read: {error}; using the newest checkpoint")
        return None


def _fits(weights: Weights, model: AutoEncoder) -> bool:
    """Whether these are the model's weights. It has no memory yet, since config.json may claim any size."""
    expected = model.state_dict()
    return weights.keys() == expected.keys() and all(
        isinstance(weight, Tensor)
        and weight.shape == expected[name].shape
        and weight.dtype == expected[name].dtype
        and weight.untyped_storage().nbytes() >= weight.nbytes  # else one number stands for many
        for name, weight in weights.items()
    )
