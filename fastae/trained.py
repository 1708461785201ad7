"""A run's trained weights, for those who want to use them: reconstruct, export, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastae import checkpoint
from fastae.config import TrainConfig
from fastae.console import say
from fastae.errors import FastaeError
from fastae.model import AutoEncoder
from fastae.outofmemory import shapes
from fastae.run import RunFolder


@dataclass(frozen=True)
class Trained:
    """model: in evaluation mode, float32. iteration: how many steps it has been trained for."""

    run: RunFolder
    config: TrainConfig
    iteration: int
    model: AutoEncoder


def open_trained(path: Path, device: str | torch.device = "cpu") -> Trained:
    """The newest whole checkpoint of the run in `path`.

    Raises FastaeError where that is no run, has no checkpoint yet, or its weights are of another shape.
    """
    run = RunFolder(path)
    config = run.settings()
    state = checkpoint.newest(run.checkpoints, say)
    if state is None:
        raise FastaeError(
            f"{str(path)!r} holds no usable checkpoint: it has not been trained long enough yet"
        )
    if not _fits(state["model"], config):
        raise checkpoint.does_not_fit(path)
    model = AutoEncoder(config.image_size, config.latent)
    model.load_state_dict(state["model"])
    return Trained(run, config, state["iteration"], model.to(device).eval())


def _fits(weights: Any, config: TrainConfig) -> bool:
    """Whether these are the model's weights; before memory is taken for what config.json may claim."""
    try:
        expected = shapes(config).state_dict()
    except FastaeError:
        return False
    return weights.keys() == expected.keys() and all(
        isinstance(weight, Tensor)
        and weight.shape == expected[name].shape
        and weight.dtype == expected[name].dtype
        and weight.untyped_storage().nbytes() >= weight.nbytes  # else one number stands for many
        for name, weight in weights.items()
    )
