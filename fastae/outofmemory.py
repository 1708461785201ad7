"""What to do when the memory of a device is too small for a run."""

from __future__ import annotations

import torch

from fastae.config import TrainConfig
from fastae.data.loader import Loader, ResidentLoader
from fastae.data.memory import total_bytes
from fastae.errors import FastaeError
from fastae.model import AutoEncoder

OUT_OF_HOST_MEMORY = "DefaultCPUAllocator"
"""In the message of the RuntimeError that is all that PyTorch raises on a CPU."""

BYTES_A_WEIGHT = 16
"""float32 weight, gradient and Adam's two moments."""

HEADROOM = 2.0
"""Gradients of activations and cuDNN's workspaces, beside what is saved for the backward pass."""


def require_room(config: TrainConfig, device: torch.device) -> None:
    """Raises FastaeError for a model that can never be trained on `device`, before anything is begun."""
    model = shapes(config)
    needed, total = BYTES_A_WEIGHT * count_weights(model), total_bytes(device)
    if needed > total:
        raise FastaeError(
            f"a model of --image-size {config.image_size} and --latent {config.latent} takes "
            f"{needed / 1e9:,.1f} GB to train, and {device} has {total / 1e9:.1f} GB"
        )


def advice(config: TrainConfig, loader: Loader, device: torch.device) -> str:
    """One line for a run that ran out of memory on `device`."""
    total = total_bytes(device) if device.type == "cuda" else 0
    resident = loader.store.pixels.nbytes if isinstance(loader, ResidentLoader) else 0
    return words(config, total, resident)


def words(config: TrainConfig, total: int, resident: int) -> str:
    """total: the device's bytes, 0 where unknown. resident: those of the decoded images on it."""
    streamed = f"--loader dali ({resident / 1e9:.1f} GB less)" if resident else ""
    batch = fitting_batch(config, total - resident) or config.batch_size // 2
    smaller = f"--batch-size {batch}" if 0 < batch < config.batch_size else ""
    remedy = " or ".join(filter(None, (smaller, streamed))) or "a smaller --image-size, or another device"
    return f"out of memory at batch size {config.batch_size}: try {remedy}"


def fitting_batch(config: TrainConfig, free: int) -> int:
    """The largest power of two of images that should fit into so many bytes; 0 where none does."""
    weights, activations = demand(config)
    images = int((free - BYTES_A_WEIGHT * weights) / (HEADROOM * activations))
    return 1 << (images.bit_length() - 1) if images > 0 else 0


def demand(config: TrainConfig) -> tuple[int, int]:
    """(weights, bytes that one image's forward pass keeps for the backward), counted on the model itself."""
    model = shapes(config)
    image = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    weights = {id(weight) for weight in model.parameters()}
    kept: dict[int, int] = {}

    def count(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in weights:
            kept[id(value)] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        held = model(image)  # alive while counted: an id is not used twice
    del held
    return count_weights(model), sum(kept.values())


def shapes(config: TrainConfig) -> AutoEncoder:
    """The model on the meta device, which takes no memory whatever its size."""
    with torch.device("meta"):
        return AutoEncoder(config.image_size, config.latent)


def count_weights(model: AutoEncoder) -> int:
    return sum(weight.numel() for weight in model.parameters())
