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
    model = AutoEncoder(config.image_size, config.latent)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError:
        raise FastaeError(f"the checkpoint in {str(path)!r} does not fit its config.json") from None
    return Trained(run, config, state["iteration"], model.to(device).eval())
