"""The settings of a training run: one frozen dataclass, validated once, written to the run's folder.

The options of the command line are made from these fields (`fastae.cli.options`), so that a name, its default
and its help are written once. Other code trusts the values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from fastae.errors import FastaeError, SettingError
from fastae.experiment.augment import Augmentation
from fastae.experiment.losses import LOSS_NAME, LOSSES
from fastae.utils.arguments import (
    BATCH_SIZE,
    CROP,
    IMAGE_SIZE,
    LATENT,
    SEED,
    SHARE,
    THREADS,
    LoaderKind,
    Range,
    require_choice,
)
from fastae.utils.json import convert
from fastae.utils.paths import user_path

COUNT = Range(1, 10**12)
"""The range of iterations, images and checkpoints. Multiplied by any batch size, they fit into 64 bits."""

MINUTES = Range(1e-6, 1e7)


def setting(
    default: Any,
    group: str,
    text: str,
    *,
    within: Range | None = None,
    can_change: bool = False,
    choices: Collection[str] = (),
    path: bool = False,
    metavar: str | None = None,
) -> Any:
    """Returns a dataclass field with its help and its valid values.

    Args:
        default: the field's default.
        group: the heading under which `--help` lists the option.
        text: the option's help.
        within: the valid numbers.
        can_change: whether a resumed run may change it, since what is optimized stays the same.
        choices: the valid words.
        path: whether the value is a path.
        metavar: the name of the value in `--help`.
    """
    metadata = {"group": group, "help": text, "within": within, "can_change": can_change, "choices": choices}
    return field(default=default, metadata={**metadata, "path": path, "metavar": metavar})


REMOVED = ("sync_bn",)
"""Settings of earlier versions, which are ignored where a file has them."""

EXPERIMENT, DATA, SPEED = "Experiment", "Data", "Speed"
RUN_FOLDER, FAULTS = "Run folder", "Fault tolerance"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one run. The defaults are the article's, as far as the article states them."""

    loss: str = setting(
        "minibatch_bce", EXPERIMENT, f"Reconstruction loss: {', '.join(LOSSES)}.",
        choices=tuple(LOSSES), metavar="NAME",
    )  # fmt: skip
    iterations: int = setting(100_000, EXPERIMENT, "Optimizer steps.", within=COUNT, can_change=True)
    minutes: float | None = setting(
        None,
        EXPERIMENT,
        "Stop after this time, evaluations and saving included, or after --iterations.",
        within=MINUTES,
        can_change=True,
    )
    batch_size: int = setting(64, EXPERIMENT, "Images per step.", within=BATCH_SIZE)
    lr: float = setting(1e-4, EXPERIMENT, "Adam's learning rate.", within=Range(1e-30, 1e38))
    seed: int = setting(0, EXPERIMENT, "Seed of initial weights, image order and augmentation.", within=SEED)
    latent: int = setting(512, EXPERIMENT, "Size of the latent code.", within=LATENT)
    data: str | None = setting(
        None, DATA, "Folder of JPEGs and PNGs. Default: $FASTAE_DATA, else 2,000 synthetic faces.",
        can_change=True, path=True, metavar="DIR",
    )  # fmt: skip
    image_size: int = setting(
        128, DATA, "Side that images are resized to, a multiple of 16.", within=IMAGE_SIZE
    )
    crop: int | None = setting(
        None, DATA, "Side of the central square that is cut out first. Default: the largest.", within=CROP
    )
    antialias: bool = setting(
        False, DATA, "Antialiased resize. Off by default, as in TensorFlow and the article."
    )
    brightness: float = setting(0.125, DATA, "Random brightness is within +- this value.", within=SHARE)
    contrast: float = setting(0.2, DATA, "Random contrast factor is within 1 +- this value.", within=SHARE)
    saturation: float = setting(
        0.2, DATA, "Random saturation factor is within 1 +- this value.", within=SHARE
    )
    device: str = setting("auto", SPEED, "auto, cpu, cuda or cuda:N.", can_change=True, metavar="DEVICE")
    amp: bool = setting(False, SPEED, "Mixed precision: bf16 if natively supported, else fp16 on CUDA.")
    compile: bool | None = setting(
        None, SPEED, "torch.compile. Default: on for CUDA, and for CPU runs that amortise it.",
        can_change=True,
    )  # fmt: skip
    channels_last: bool = setting(True, SPEED, "Keep convolutions' data in NHWC order.", can_change=True)
    loader: str = setting(
        "auto", SPEED, "dali: decode every epoch; resident, host: decode once, keep the pixels on the device "
        "or in host memory; auto: the first of resident, host, dali that fits in half of the free memory.",
        can_change=True, choices=get_args(LoaderKind),
    )  # fmt: skip
    cache: bool = setting(True, SPEED, "Keep the resident pixels on disk for the next run.", can_change=True)
    cache_dir: str | None = setting(
        None, SPEED, "Cache folder. Default: $FASTAE_CACHE, else ~/.cache/fastae.",
        can_change=True, path=True, metavar="DIR",
    )  # fmt: skip
    threads: int | None = setting(
        None, SPEED, "CPU threads that decode. Default: by the number of cores.", within=THREADS,
        can_change=True,
    )  # fmt: skip
    deterministic: bool = setting(False, SPEED, "Bitwise reproducible on a GPU too, but slower.")
    out: str | None = setting(
        None, RUN_FOLDER, "Run folder to create. Default: runs/TIME-LOSS.", path=True, metavar="DIR"
    )
    log_every: int = setting(
        50, RUN_FOLDER, "Iterations between log lines.", within=Range(1, 1_000_000), can_change=True
    )
    eval_every: int = setting(
        1_000, RUN_FOLDER, "Iterations between evaluations.", within=COUNT, can_change=True
    )
    eval_images: int = setting(
        256, RUN_FOLDER, "Held-out images to evaluate on, evenly spaced over all of them.", within=COUNT
    )
    gpu_sample_hz: float = setting(
        2.0, RUN_FOLDER, "Samples of GPU and CPU use per second; 0 disables the report.",
        within=Range(0, 1000), can_change=True,
    )  # fmt: skip
    profile: int = setting(
        0, RUN_FOLDER, "Steps to trace with PyTorch's profiler, after the warm-up.", within=Range(0, 1000),
        can_change=True, metavar="N",
    )  # fmt: skip
    checkpoint_every: int | None = setting(
        None, FAULTS, "Iterations between checkpoints. Default: by time alone.", within=COUNT, can_change=True
    )
    checkpoint_minutes: float = setting(
        10.0, FAULTS, "Minutes between checkpoints.", within=MINUTES, can_change=True
    )
    keep: int = setting(
        2, FAULTS, "Checkpoints that an unfinished run keeps. A finished run keeps the last one, or with 0 "
        "only its weights.", within=Range(0, COUNT.most), can_change=True,
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
            if entry.name == "loss":
                self._require_loss_name()
            elif choices:
                require_choice(value, entry.name, choices)
            if entry.metadata["path"]:
                object.__setattr__(self, entry.name, user_path(value, entry.name))

    def _require_loss_name(self) -> None:
        """Raises SettingError unless `loss` can be a loss's name. A run may have a loss of a user's own."""
        if not LOSS_NAME.fullmatch(self.loss):
            raise SettingError("loss", f"{self.loss!r:.60} is not one of: {', '.join(LOSSES)}")

    def ended_by(self, iteration: int, seconds: float) -> str | None:
        """Returns the option that ends a run after so many iterations and seconds; None if it continues."""
        if iteration >= self.iterations:
            return "--iterations"
        return "--minutes" if self.minutes and seconds >= 60 * self.minutes else None

    @property
    def has_article_size(self) -> bool:
        """Whether a step takes as many FLOPs as the article's, so that training times can be compared."""
        names = ("image_size", "latent", "batch_size")
        return all(getattr(self, name) == getattr(TrainConfig, name) for name in names)

    @property
    def augmentation(self) -> Augmentation:
        """The ranges of the random changes of colors."""
        return Augmentation(**{name: getattr(self, name) for name in Augmentation.__dataclass_fields__})

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str) -> TrainConfig:
        """Returns the settings that `as_dict` returned as `values`. Missing ones have their defaults.

        Raises FastaeError, naming the file `where` that contains the values, if they are not valid settings.
        """
        if not isinstance(values, dict):
            raise FastaeError(f"{where} does not contain the settings of a run")
        values = {name: value for name, value in values.items() if name not in REMOVED}
        for name in values.keys() - {entry.name for entry in dataclasses.fields(cls)}:
            raise FastaeError(f"{where}: {name!r:.80} is not a setting of this version of fastae")
        try:
            return convert(values, cls)
        except (ValueError, FastaeError) as error:
            raise FastaeError(f"{where}: {error}") from None


FIXED = tuple(
    entry.name
    for entry in dataclasses.fields(TrainConfig)
    if not entry.metadata["can_change"] and entry.name != "out"
)
"""The names of the settings that decide the optimization, which a resumed run cannot change."""


def flag(name: str) -> str:
    """Returns the option of a field: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")
