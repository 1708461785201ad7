"""Too little memory on a device: refuses a model that can never fit, advises what takes less."""

from __future__ import annotations

import torch

from fastae.config import TrainConfig
from fastae.data.loaders.loader import Loader, ResidentLoader
from fastae.errors import FastaeError
from fastae.model import meta_model
from fastae.utils.device import total_memory

OUT_OF_HOST_MEMORY = "DefaultCPUAllocator"
"""Part of the message of the RuntimeError that PyTorch raises on a CPU."""

BYTES_PER_WEIGHT = 16
"""float32 weight, gradient and Adam's two moments."""


def require_room(config: TrainConfig, device: torch.device) -> None:
    """Raises FastaeError for a model that can never be trained on `device`, before anything is begun."""
    model = meta_model(config.image_size, config.latent)
    needed = BYTES_PER_WEIGHT * sum(weight.numel() for weight in model.parameters())
    total = total_memory(device)
    if needed > total:
        raise FastaeError(
            f"a model of --image-size {config.image_size} and --latent {config.latent} takes "
            f"{needed / 1e9:,.1f} GB to train, and {device} has {total / 1e9:.1f} GB"
        )


def advice(config: TrainConfig, loader: Loader, device: torch.device) -> str:
    """One line for a run that ran out of memory on `device`."""
    remedies = [f"--batch-size {config.batch_size // 2}"] if config.batch_size > 1 else []
    if isinstance(loader, ResidentLoader):
        kind, saved = "host" if device.type == "cuda" else "dali", loader.store.pixels.nbytes
        remedies.append(f"--loader {kind} ({saved / 1e9:.1f} GB less on {device})")
    remedy = " or ".join(remedies) or "a smaller --image-size, or another device"
    return f"out of memory at batch size {config.batch_size}: try {remedy}"
