"""A run's trained weights, for those who want to use them: reconstruct, export, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

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

    Raises FastaeError where that is no run, or has no checkpoint that fits its settings.
    """
    run = RunFolder(path)
    config = run.settings()
    state = checkpoint.newest(run.checkpoints, say, shapes(config))
    if state is None:
        raise FastaeError(f"{str(path)!r} holds no usable checkpoint: train it longer, or restore one")
    model = AutoEncoder(config.image_size, config.latent)
    model.load_state_dict(state["model"])
    return Trained(run, config, state["iteration"], model.to(device).eval())
