"""Too little memory on a device: refuses a model that can never fit, advises a batch size that should."""

from __future__ import annotations

import torch

from fastae.config import TrainConfig
from fastae.data.loader import Loader, ResidentLoader
from fastae.data.memory import total_bytes
from fastae.errors import FastaeError
from fastae.model import AutoEncoder, meta_model

OUT_OF_HOST_MEMORY = "DefaultCPUAllocator"
"""In the message of the RuntimeError that is all that PyTorch raises on a CPU."""

BYTES_PER_WEIGHT = 16
"""float32 weight, gradient and Adam's two moments."""

HEADROOM = 2.0
"""Gradients of activations and cuDNN's workspaces, beside what is saved for the backward pass."""


def require_room(config: TrainConfig, device: torch.device) -> None:
    """Raises FastaeError for a model that can never be trained on `device`, before anything is begun."""
    subject = f"a model of --image-size {config.image_size} and --latent {config.latent}"
    needed = training_bytes(meta_model(config.image_size, config.latent))
    if needed > (total := total_bytes(device)):
        raise FastaeError(
            f"{subject} takes {needed / 1e9:,.1f} GB to train, and {device} has {total / 1e9:.1f} GB"
        )


def advice(config: TrainConfig, loader: Loader, device: torch.device) -> str:
    """One line for a run that ran out of memory on `device`: a batch size or loader that should fit."""
    resident = loader.store.pixels.nbytes if isinstance(loader, ResidentLoader) else 0
    free = total_bytes(device) - resident if device.type == "cuda" else 0
    batch = fitting_batch(config, free) or config.batch_size // 2
    remedies = [f"--batch-size {batch}"] if 0 < batch < config.batch_size else []
    if resident:
        remedies.append(f"--loader dali ({resident / 1e9:.1f} GB less)")
    remedy = " or ".join(remedies) or "a smaller --image-size, or another device"
    return f"out of memory at batch size {config.batch_size}: try {remedy}"


def fitting_batch(config: TrainConfig, free: int) -> int:
    """The largest power of two of images that should fit into so many bytes; 0 if none does."""
    model = meta_model(config.image_size, config.latent)
    images = int((free - training_bytes(model)) / (HEADROOM * activation_bytes(model, config.image_size)))
    return 1 << (images.bit_length() - 1) if images > 0 else 0


def training_bytes(model: AutoEncoder) -> int:
    """Weights, gradients and optimizer state."""
    return BYTES_PER_WEIGHT * sum(weight.numel() for weight in model.parameters())


def activation_bytes(model: AutoEncoder, image_size: int) -> int:
    """What one image's forward pass saves for the backward pass; `model` is on the meta device."""
    weights = {id(weight) for weight in model.parameters()}
    saved: dict[int, int] = {}

    def count(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in weights:
            saved[id(value)] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        _alive = model(torch.empty(1, 3, image_size, image_size, device="meta"))  # no id is used twice
    return sum(saved.values())
