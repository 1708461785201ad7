"""The state of a run on disk: plain tensors and numbers, which `torch.load(weights_only=True)` reads."""

from __future__ import annotations

from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.files import atomic_write
from fastae.step import TrainingStep


def save(path: Path, step: TrainingStep, iteration: int, config: TrainConfig) -> None:
    """Writes model, optimiser, scaler, iteration and config; `path` is whole or as it was."""
    state = {
        "model": step.model.state_dict(),
        "optimiser": step.optimiser.state_dict(),
        "scaler": step.scaler.state_dict(),
        "iteration": iteration,
        "config": config.as_dict(),
    }
    with atomic_write(path) as file:
        torch.save(state, file)
