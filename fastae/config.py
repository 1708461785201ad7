"""Everything that can be set in a training run: one frozen dataclass, validated once, written to the run.

The command line is made from these fields (`fastae.options`), so that a name, a default and its
explanation stand in one place. Deeper code trusts what comes out of here.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from fastae.augment import Augmentation
from fastae.errors import FastaeError
from fastae.losses import LOSSES

LOADERS = ("auto", "dali", "resident")
IMAGE_SIZE_MULTIPLE = 16  # fastae.model.DOWNSAMPLING; not imported, since that would import torch


def setting(default: Any, text: str, metavar: str | None = None) -> Any:
    """A field with its explanation; `metavar` names the value in `--help`."""
    return field(default=default, metadata={"help": text, "metavar": metavar})


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are the article's conditions, except where the article is silent."""

    loss: str = setting("minibatch_bce", "Reconstruction loss.")
    data: str | None = setting(
        None,
        "Folder of JPEGs, nested or flat. Default: $FASTAE_DATA, else 2,000 synthetic faces.",
        "DIR",
    )
    out: str | None = setting(None, "Run folder to create. Default: runs/TIME-LOSS.", "DIR")
    iterations: int = setting(100_000, "Optimiser steps; the article's is 100,000.")
    minutes: float | None = setting(
        None, "Stop after this much training time, if that comes before --iterations."
    )
    batch_size: int = setting(64, "Images a step.")
    lr: float = setting(1e-4, "Adam's learning rate.")
    seed: int = setting(0, "Fixes the weights, the order of the images and their augmentation.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.", "DEVICE")
    amp: bool = setting(False, "Mixed precision: bf16 where the device is good at it, else fp16 on CUDA.")
    compile: bool | None = setting(
        None, "torch.compile. Default: on for CUDA, and for CPU runs long enough to earn it back."
    )
    channels_last: bool = setting(True, "Keep convolutions' data in NHWC order.")
    image_size: int = setting(128, "Side that images are resized to, a multiple of 16.")
    latent: int = setting(512, "Length of the code between encoder and decoder.")
    crop: int | None = setting(
        None, "Side of the centred square cut out first. Default: the largest that fits."
    )
    antialias: bool = setting(False, "Antialiased resize. Off is TensorFlow's default, hence the article's.")
    brightness: float = setting(0.125, "Random brightness is +- this, of a range of 1.")
    contrast: float = setting(0.2, "Random contrast factor is 1 +- this.")
    saturation: float = setting(0.2, "Random saturation factor is 1 +- this.")
    log_every: int = setting(50, "Iterations between log lines and scalars.")
    eval_every: int = setting(1_000, "Iterations between evaluations on held-out images.")
    eval_images: int = setting(256, "Held-out images to evaluate on, spread over all of them.")
    loader: str = setting(
        "auto",
        "dali: decode every epoch; resident: decode once, keep the pixels on the device; "
        "auto: resident where that fits in half of the free memory.",
        "auto|dali|resident",
    )
    cache: bool = setting(True, "Keep the resident pixels on disk for the next run.")
    cache_dir: str | None = setting(None, "Cache folder. Default: $FASTAE_CACHE, else the user's.", "DIR")
    threads: int | None = setting(None, "CPU threads that decode images. Default: one a core, at most 8.")
    gpu_sample_hz: float = setting(10.0, "Readings of GPU and host a second for the report; 0 is off.")

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastaeError(f"--loss {self.loss!r} is not one of: {', '.join(LOSSES)}")
        if self.loader not in LOADERS:
            raise FastaeError(f"--loader {self.loader!r} is not one of: {', '.join(LOADERS)}")
        for name in (
            "iterations", "minutes", "batch_size", "lr", "image_size", "latent", "crop",
            "log_every", "eval_every", "eval_images", "threads",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise FastaeError(f"{flag(name)} must be positive, not {value}")
        if self.image_size % IMAGE_SIZE_MULTIPLE:
            raise FastaeError(
                f"--image-size must be a multiple of {IMAGE_SIZE_MULTIPLE}, not {self.image_size}"
            )
        if not 0 <= self.seed < 2**63:
            raise FastaeError(f"--seed must be in [0, 2^63), not {self.seed}")
        for name in ("brightness", "gpu_sample_hz"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise FastaeError(f"{flag(name)} must be 0 or more, not {value}")
        for name in ("contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise FastaeError(f"--{name} must be in [0, 1], not {getattr(self, name)}")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.brightness, self.contrast, self.saturation)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str) -> TrainConfig:
        """The settings that `as_dict` wrote; ones that it did not know have their defaults.

        Raises FastaeError, naming the file `where` they stood, for anything else.
        """
        if not isinstance(values, dict):
            raise FastaeError(f"{where}: no settings of a run")
        types = typing.get_type_hints(cls)
        for name, value in values.items():
            if name not in types:
                raise FastaeError(f"{where}: {name!r:.80} is no setting of this version of fastae")
            if not _fits(value, types[name]):
                raise FastaeError(f"{where}: {name} cannot be {value!r:.80}")
        return cls(**values)


def _fits(value: object, annotation: object) -> bool:
    kinds = typing.get_args(annotation) or (annotation,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def flag(name: str) -> str:
    """The command line's spelling of a field's name: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
