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
ON_NAN = ("stop", "skip")
LARGEST = 2**63
IMAGE_SIZE_MULTIPLE = 16  # fastae.model.DOWNSAMPLING; not imported, since that would import torch


def setting(default: Any, text: str, metavar: str | None = None, *, free: bool = False) -> Any:
    """A field with its explanation; `metavar` names the value in `--help`.

    free: may differ when a run is resumed, since it does not change what is optimised.
    """
    return field(default=default, metadata={"help": text, "metavar": metavar, "free": free})


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are the article's conditions, except where the article is silent."""

    loss: str = setting("minibatch_bce", "Reconstruction loss.")
    data: str | None = setting(
        None,
        "Folder of JPEGs, nested or flat. Default: $FASTAE_DATA, else 2,000 synthetic faces.",
        "DIR",
        free=True,
    )
    out: str | None = setting(None, "Run folder to create. Default: runs/TIME-LOSS.", "DIR")
    iterations: int = setting(100_000, "Optimiser steps; the article's is 100,000.", free=True)
    minutes: float | None = setting(
        None, "Stop after this much training time, if that comes before --iterations.", free=True
    )
    batch_size: int = setting(64, "Images a step.")
    lr: float = setting(1e-4, "Adam's learning rate.")
    seed: int = setting(0, "Fixes the weights, the order of the images and their augmentation.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.", "DEVICE", free=True)
    amp: bool = setting(False, "Mixed precision: bf16 where the device is good at it, else fp16 on CUDA.")
    compile: bool | None = setting(
        None, "torch.compile. Default: on for CUDA, and for CPU runs long enough to earn it back.", free=True
    )
    channels_last: bool = setting(True, "Keep convolutions' data in NHWC order.", free=True)
    image_size: int = setting(128, "Side that images are resized to, a multiple of 16.")
    latent: int = setting(512, "Length of the code between encoder and decoder.")
    crop: int | None = setting(
        None, "Side of the centred square cut out first. Default: the largest that fits."
    )
    antialias: bool = setting(False, "Antialiased resize. Off is TensorFlow's default, hence the article's.")
    brightness: float = setting(0.125, "Random brightness is +- this, of a range of 1.")
    contrast: float = setting(0.2, "Random contrast factor is 1 +- this.")
    saturation: float = setting(0.2, "Random saturation factor is 1 +- this.")
    log_every: int = setting(50, "Iterations between log lines and scalars.", free=True)
    eval_every: int = setting(1_000, "Iterations between evaluations on held-out images.", free=True)
    eval_images: int = setting(256, "Held-out images to evaluate on, spread over all of them.")
    loader: str = setting(
        "auto",
        "dali: decode every epoch; resident: decode once, keep the pixels on the device; "
        "auto: resident where that fits in half of the free memory.",
        "auto|dali|resident",
        free=True,
    )
    cache: bool = setting(True, "Keep the resident pixels on disk for the next run.", free=True)
    cache_dir: str | None = setting(
        None, "Cache folder. Default: $FASTAE_CACHE, else the user's.", "DIR", free=True
    )
    threads: int | None = setting(
        None, "CPU threads that decode images. Default: one a core, at most 8.", free=True
    )
    checkpoint_every: int | None = setting(
        None, "Iterations between checkpoints. Default: by --checkpoint-minutes alone.", free=True
    )
    checkpoint_minutes: float = setting(10.0, "Minutes between checkpoints.", free=True)
    keep: int = setting(3, "Checkpoints that are kept.", free=True)
    on_nan: str = setting(
        "stop",
        "A loss that is not finite: stop, the last good checkpoint kept, or skip that step.",
        "stop|skip",
        free=True,
    )
    signal_grace: float = setting(
        0.0,
        "Seconds to train on after SIGTERM, SIGINT or SIGHUP; a checkpoint is saved at once and at the end.",
        free=True,
    )
    deterministic: bool = setting(False, "On a GPU too, the same bits from the same seed; slower.")
    sync_bn: bool = setting(False, "Under torchrun, batch norm over the whole batch, not each rank's part.")
    profile: int = setting(0, "Steps to trace with PyTorch's profiler, after the warm-up.", "N", free=True)
    gpu_sample_hz: float = setting(
        10.0, "Readings of GPU and host a second for the report; 0 is off.", free=True
    )

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastaeError(f"--loss {self.loss!r} is not one of: {', '.join(LOSSES)}")
        if self.on_nan not in ON_NAN:
            raise FastaeError(f"--on-nan {self.on_nan!r} is not one of: {', '.join(ON_NAN)}")
        if self.loader not in LOADERS:
            raise FastaeError(f"--loader {self.loader!r} is not one of: {', '.join(LOADERS)}")
        for name, value in self.as_dict().items():
            if isinstance(value, int) and value >= LARGEST:
                raise FastaeError(f"{flag(name)} must be below 2^63, not {value!s:.30}")
        for name in (
            "iterations", "minutes", "batch_size", "lr", "image_size", "latent", "crop",
            "log_every", "eval_every", "eval_images", "threads",
            "checkpoint_every", "checkpoint_minutes", "keep",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise FastaeError(f"{flag(name)} must be positive, not {value}")
        if self.image_size % IMAGE_SIZE_MULTIPLE:
            raise FastaeError(
                f"--image-size must be a multiple of {IMAGE_SIZE_MULTIPLE}, not {self.image_size}"
            )
        if not 0 <= self.seed < LARGEST:
            raise FastaeError(f"--seed must be in [0, 2^63), not {self.seed}")
        for name in ("brightness", "gpu_sample_hz", "signal_grace", "profile"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
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
