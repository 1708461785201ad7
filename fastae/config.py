"""The settings of a training run: one frozen dataclass, validated once, written to the run's folder.

The command line is made from these fields (`fastae.cli.options`), so that a name, its default and its
explanation have one place. Other code trusts the values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from fastae.augment import Augmentation
from fastae.errors import FastaeError, SettingError
from fastae.losses import LOSSES
from fastae.utils.arguments import (
    BATCH_SIZE,
    CROP,
    IMAGE_SIZE,
    IMAGE_SIZE_MULTIPLE,
    LATENT,
    SEED,
    SHARE,
    THREADS,
    Range,
    require_choice,
    require_image_size,
)
from fastae.utils.json import convert
from fastae.utils.paths import user_path

COUNT = Range(1, 10**12)
"""Iterations, images, checkpoints: times any batch size, it still fits into 64 bits."""

MINUTES = Range(1e-6, 1e7)


def setting(
    default: Any,
    group: str,
    text: str,
    within: Range | None = None,
    *,
    free: bool = False,
    choices: Collection[str] = (),
    path: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field with its explanation; `group` is the heading in `--help`, `metavar` names the value there.

    within, choices, path: which values are valid. free: may differ when a run is resumed, since it does not
    change what is optimized.
    """
    metadata = {"group": group, "help": text, "within": within, "free": free, "choices": choices}
    return field(default=default, metadata={**metadata, "path": path, "metavar": metavar})


EXPERIMENT, DATA, SPEED = "Experiment", "Data", "Speed"
RUN_FOLDER, FAULTS = "Run folder", "Fault tolerance"


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are the article's conditions, except where the article is silent."""

    loss: str = setting("minibatch_bce", EXPERIMENT, "Reconstruction loss.", choices=tuple(LOSSES))
    iterations: int = setting(100_000, EXPERIMENT, "Optimizer steps.", COUNT, free=True)
    minutes: float | None = setting(
        None, EXPERIMENT, "Stop after this much training time, if before --iterations.", MINUTES, free=True
    )
    batch_size: int = setting(64, EXPERIMENT, "Images per step.", BATCH_SIZE)
    lr: float = setting(1e-4, EXPERIMENT, "Adam's learning rate.", Range(1e-30, 1e38))
    seed: int = setting(0, EXPERIMENT, "Of weights, image order and augmentation.", SEED)
    latent: int = setting(512, EXPERIMENT, "Length of the code that images are reduced to.", LATENT)
    data: str | None = setting(
        None, DATA, "Folder of JPEGs. Default: $FASTAE_DATA, else 2,000 synthetic faces.",
        free=True, path=True, metavar="DIR",
    )  # fmt: skip
    image_size: int = setting(128, DATA, "Side that images are resized to, a multiple of 16.", IMAGE_SIZE)
    crop: int | None = setting(
        None, DATA, "Side of the central square to cut out first. Default: the largest.", CROP
    )
    antialias: bool = setting(
        False, DATA, "Antialiased resize. Off, as in the article: TensorFlow's default."
    )
    brightness: float = setting(0.125, DATA, "Random brightness is +- this, of a range of 1.", SHARE)
    contrast: float = setting(0.2, DATA, "Random contrast factor is 1 +- this.", SHARE)
    saturation: float = setting(0.2, DATA, "Random saturation factor is 1 +- this.", SHARE)
    device: str = setting("auto", SPEED, "auto, cpu, cuda or cuda:N.", free=True, metavar="DEVICE")
    amp: bool = setting(False, SPEED, "Mixed precision: bf16 if the device is good at it, else fp16 on CUDA.")
    compile: bool | None = setting(
        None, SPEED, "torch.compile. Default: on for CUDA, and for CPU runs that amortise it.", free=True
    )
    channels_last: bool = setting(True, SPEED, "Keep convolutions' data in NHWC order.", free=True)
    loader: str = setting(
        "auto", SPEED, "dali: decode every epoch; resident, host: decode once, keep the pixels on the device "
        "or in host memory; auto: the first of resident, host, dali that fits in half of the free memory.",
        free=True, choices=("auto", "dali", "host", "resident"),
    )  # fmt: skip
    cache: bool = setting(True, SPEED, "Keep the resident pixels on disk for the next run.", free=True)
    cache_dir: str | None = setting(
        None, SPEED, "Cache folder. Default: $FASTAE_CACHE, else ~/.cache/fastae.",
        free=True, path=True, metavar="DIR",
    )  # fmt: skip
    threads: int | None = setting(
        None, SPEED, "CPU threads that decode. Default: by the number of cores.", THREADS, free=True
    )
    deterministic: bool = setting(False, SPEED, "On a GPU too, the same bits from the same seed; slower.")
    sync_bn: bool = setting(False, SPEED, "Under torchrun, batch norm over the whole batch, not per rank.")
    out: str | None = setting(
        None, RUN_FOLDER, "Run folder to create. Default: runs/TIME-LOSS.", path=True, metavar="DIR"
    )
    log_every: int = setting(50, RUN_FOLDER, "Iterations between log lines.", Range(1, 1_000_000), free=True)
    eval_every: int = setting(1_000, RUN_FOLDER, "Iterations between evaluations.", COUNT, free=True)
    eval_images: int = setting(
        256, RUN_FOLDER, "Held-out images to evaluate on, evenly spaced over all of them.", COUNT
    )
    gpu_sample_hz: float = setting(
        2.0, RUN_FOLDER, "Readings of GPU and host per second for the report; 0 is off.", Range(0, 1000),
        free=True,
    )  # fmt: skip
    profile: int = setting(
        0, RUN_FOLDER, "Steps to trace with PyTorch's profiler, after the warm-up.", Range(0, 1000),
        free=True, metavar="N",
    )  # fmt: skip
    checkpoint_every: int | None = setting(
        None, FAULTS, "Iterations between checkpoints. Default: by minutes alone.", COUNT, free=True
    )
    checkpoint_minutes: float = setting(10.0, FAULTS, "Minutes between checkpoints.", MINUTES, free=True)
    keep: int = setting(
        2, FAULTS, "Checkpoints that an unfinished run keeps. A finished one keeps the last, or with 0 its "
        "weights alone.", Range(0, COUNT.most), free=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        kinds = get_type_hints(TrainConfig)
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            within, choices = entry.metadata["within"], entry.metadata["choices"]
            if entry.metadata["path"] and isinstance(value, os.PathLike):
                value = os.fspath(value)
                object.__setattr__(self, entry.name, value)
            try:
                convert(value, kinds[entry.name])
            except ValueError:
                raise SettingError(entry.name, f"must be of type {entry.type}, not {value!r:.60}") from None
            if value is None:
                continue
            if within:
                within.require(value, entry.name)
            if choices:
                require_choice(value, entry.name, choices)
            if entry.metadata["path"]:
                object.__setattr__(self, entry.name, user_path(value, entry.name))
        require_image_size(self.image_size)
        self.require_ranks(1)

    def require_ranks(self, size: int) -> None:
        """Raises FastaeError if batch norm cannot train on the parts of a batch that so many ranks get.

        At the end of the encoder an image of 16 pixels is one value per channel, whose variance is zero.
        """
        part = self.batch_size if self.sync_bn else self.batch_size // size
        if part == 1 and self.image_size == IMAGE_SIZE_MULTIPLE:
            where, also = (f" on each of {size} ranks", ", or --sync-bn") if size > 1 else ("", "")
            raise SettingError(
                "batch_size",
                f"{self.batch_size} leaves batch norm one value per channel for images of {self.image_size} "
                f"pixels{where}: use larger batches or images{also}",
            )

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.brightness, self.contrast, self.saturation)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str) -> TrainConfig:
        """The settings that `as_dict` wrote; missing ones have their defaults.

        Raises FastaeError, naming the file `where` they are from, for anything else.
        """
        if not isinstance(values, dict):
            raise FastaeError(f"{where} holds no settings of a run")
        for name in values.keys() - {entry.name for entry in dataclasses.fields(cls)}:
            raise FastaeError(f"{where}: {name!r:.80} is not a setting of this version of fastae")
        try:
            return convert(values, cls)
        except (ValueError, FastaeError) as error:
            raise FastaeError(f"{where}: {error}") from None


def flag(name: str) -> str:
    """The command line's spelling of a field's name: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
