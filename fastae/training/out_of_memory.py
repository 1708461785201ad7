"""Too little memory on a device: refuses a model that can never fit, advises a batch size that should."""

from __future__ import annotations

import torch

from fastae.config import TrainConfig
from fastae.data.loader import Loader, ResidentLoader
from fastae.errors import FastaeError
from fastae.model import meta_model
from fastae.utils.device import total_memory

OUT_OF_HOST_MEMORY = "DefaultCPUAllocator"
"""Part of the message of the RuntimeError that PyTorch raises on a CPU."""

BYTES_PER_WEIGHT = 16
"""float32 weight, gradient and Adam's two moments."""

HEADROOM = 2.0
"""Gradients of activations and cuDNN's workspaces, beside what is saved for the backward pass."""


def require_room(config: TrainConfig, device: torch.device) -> None:
    """Raises FastaeError for a model that can never be trained on `device`, before anything is begun."""
    needed, total = training_bytes(config)[0], total_memory(device)
    if needed > total:
        raise FastaeError(
            f"a model of --image-size {config.image_size} and --latent {config.latent} takes "
            f"{needed / 1e9:,.1f} GB to train, and {device} has {total / 1e9:.1f} GB"
        )


def advice(config: TrainConfig, loader: Loader, device: torch.device) -> str:
    """One line for a run that ran out of memory on `device`: a batch size or loader that should fit."""
    resident = loader.store.pixels.nbytes if isinstance(loader, ResidentLoader) else 0
    half = config.batch_size // 2
    batch = min(half, fitting_batch(config, total_memory(device) - resident) or half)
    remedies = [f"--batch-size {batch}"] if batch else []
    if resident:
        loader_kind = "host" if device.type == "cuda" else "dali"
        remedies.append(f"--loader {loader_kind} ({resident / 1e9:.1f} GB less on {device})")
    remedy = " or ".join(remedies) or "a smaller --image-size, or another device"
    return f"out of memory at batch size {config.batch_size}: try {remedy}"


def fitting_batch(config: TrainConfig, free: int) -> int:
    """The largest power of two of images that should fit into so many bytes; 0 if none does."""
    fixed, per_image = training_bytes(config)
    images = int((free - fixed) / (HEADROOM * per_image))
    return 1 << (images.bit_length() - 1) if images > 0 else 0


def training_bytes(config: TrainConfig) -> tuple[int, int]:
    """(weights, gradients and optimizer state; what an image's forward pass saves for the backward pass)."""
    model = meta_model(config.image_size, config.latent)
    weights = {id(weight): BYTES_PER_WEIGHT * weight.numel() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def count(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in weights:
            saved[id(value)] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        # Two images, which batch norm needs if they end in one pixel. Kept, so that no id is used twice.
        _alive = model(torch.empty(2, 3, config.image_size, config.image_size, device="meta"))
    return sum(weights.values()), sum(saved.values()) // 2
