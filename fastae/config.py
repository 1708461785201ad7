"""Everything that can be set in a training run: one frozen dataclass, validated once, written to the run.

The command line is made from these fields (`fastae.cli.options`), so that a name, a default and its
explanation stand in one place. Deeper code trusts what comes out of here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastae.augment import Augmentation
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.utils.json import convert
from fastae.utils.paths import require_path

IMAGE_SIZE_MULTIPLE = 16  # fastae.model.DOWNSAMPLING; not imported, since that would import torch


@dataclass(frozen=True)
class Range:
    """The numbers that a setting can be: `least` to `most`; with `above`, not `least` itself."""

    least: float
    most: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.least:,} and at most {self.most:,}"
        return f"from {self.least:,} to {self.most:,}"


COUNT = Range(1, 10**12)
"""Iterations, images, checkpoints: times any batch size, it still fits into 64 bits."""

MINUTES = Range(0, 10_000_000, above=True)


def require_in(allowed: Range, value: float, option: str) -> None:
    """Raises FastaeError, naming `option`, for a number that it cannot be; NaN is one."""
    if value not in allowed:
        raise FastaeError(f"{option} must be {allowed}, not {value!s:.30}")


def setting(
    default: Any,
    group: str,
    text: str,
    metavar: str | None = None,
    *,
    free: bool = False,
    within: Range | None = None,
    choices: Collection[str] = (),
    path: bool = False,
) -> Any:
    """A field with its explanation; `group` is the heading in `--help`, `metavar` names the value there.

    free: may differ when a run is resumed, since it does not change what is optimized.
    within, choices, path: which values are valid.
    """
    metadata = {
        "group": group, "help": text, "metavar": metavar, "free": free, "within": within, "choices": choices,
        "path": path,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


EXPERIMENT, DATA, SPEED = "Experiment", "Data", "Speed"
RUN_FOLDER, FAULTS = "Run folder", "Fault tolerance"


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are the article's conditions, except where the article is silent."""

    loss: str = setting("minibatch_bce", EXPERIMENT, "Reconstruction loss.", choices=tuple(LOSSES))
    iterations: int = setting(
        100_000, EXPERIMENT, "Optimizer steps; the article's is 100,000.", free=True, within=COUNT
    )
    minutes: float | None = setting(
        None,
        EXPERIMENT,
        "Stop after this much training time, if that is before --iterations.",
        free=True,
        within=MINUTES,
    )
    batch_size: int = setting(64, EXPERIMENT, "Images per step.", within=Range(1, 1_000_000))
    lr: float = setting(1e-4, EXPERIMENT, "Adam's learning rate.", within=Range(0, 1e38, above=True))
    seed: int = setting(
        0,
        EXPERIMENT,
        "Fixes the weights, the order of the images and their augmentation.",
        within=Range(0, 2**63 - 1),
    )
    latent: int = setting(
        512, EXPERIMENT, "Length of the code between encoder and decoder.", within=Range(1, 1_048_576)
    )
    data: str | None = setting(
        None,
        DATA,
        "Folder of JPEGs, nested or flat. Default: $FASTAE_DATA, else 2,000 synthetic faces.",
        "DIR",
        free=True,
        path=True,
    )
    image_size: int = setting(
        128,
        DATA,
        "Side that images are resized to, a multiple of 16.",
        within=Range(IMAGE_SIZE_MULTIPLE, 4096),
    )
    crop: int | None = setting(
        None,
        DATA,
        "Side of the centred square that is cut out first. Default: the largest that fits.",
        within=Range(1, 65_500),
    )
    antialias: bool = setting(
        False, DATA, "Antialiased resize. Off is TensorFlow's default, so the article's."
    )
    brightness: float = setting(
        0.125, DATA, "Random brightness is +- this, of a range of 1.", within=Range(0, 1)
    )
    contrast: float = setting(0.2, DATA, "Random contrast factor is 1 +- this.", within=Range(0, 1))
    saturation: float = setting(0.2, DATA, "Random saturation factor is 1 +- this.", within=Range(0, 1))
    device: str = setting("auto", SPEED, "auto, cpu, cuda or cuda:N.", "DEVICE", free=True)
    amp: bool = setting(False, SPEED, "Mixed precision: bf16 if the device is good at it, else fp16 on CUDA.")
    compile: bool | None = setting(
        None,
        SPEED,
        "torch.compile. Default: on for CUDA, and for CPU runs long enough to amortise it.",
        free=True,
    )
    channels_last: bool = setting(True, SPEED, "Keep convolutions' data in NHWC order.", free=True)
    loader: str = setting(
        "auto",
        SPEED,
        "dali: decode every epoch; resident, host: decode once, keep the pixels on the device or in host "
        "memory; auto: the first of resident, host, dali that fits in half of the free memory.",
        choices=("auto", "dali", "host", "resident"),
        free=True,
    )
    cache: bool = setting(True, SPEED, "Keep the resident pixels on disk for the next run.", free=True)
    cache_dir: str | None = setting(
        None, SPEED, "Cache folder. Default: $FASTAE_CACHE, else the user's.", "DIR", free=True, path=True
    )
    threads: int | None = setting(
        None,
        SPEED,
        "CPU threads that decode images. Default: by the number of cores.",
        free=True,
        within=Range(1, 256),
    )
    deterministic: bool = setting(False, SPEED, "On a GPU too, the same bits from the same seed; slower.")
    sync_bn: bool = setting(
        False, SPEED, "Under torchrun, batch norm over the whole batch, not each rank's part."
    )
    out: str | None = setting(
        None, RUN_FOLDER, "Run folder to create. Default: runs/TIME-LOSS.", "DIR", path=True
    )
    log_every: int = setting(
        50, RUN_FOLDER, "Iterations between log lines and scalars.", free=True, within=Range(1, 1_000_000)
    )
    eval_every: int = setting(
        1_000, RUN_FOLDER, "Iterations between evaluations on held-out images.", free=True, within=COUNT
    )
    eval_images: int = setting(
        256, RUN_FOLDER, "Held-out images to evaluate on, evenly spaced over all of them.", within=COUNT
    )
    gpu_sample_hz: float = setting(
        10.0,
        RUN_FOLDER,
        "Readings of GPU and host per second for the report; 0 is off.",
        free=True,
        within=Range(0, 1000),
    )
    profile: int = setting(
        0,
        RUN_FOLDER,
        "Steps to trace with PyTorch's profiler, after the warm-up.",
        "N",
        free=True,
        within=Range(0, 1000),
    )
    checkpoint_every: int | None = setting(
        None,
        FAULTS,
        "Iterations between checkpoints. Default: by --checkpoint-minutes alone.",
        free=True,
        within=COUNT,
    )
    checkpoint_minutes: float = setting(
        10.0, FAULTS, "Minutes between checkpoints.", free=True, within=MINUTES
    )
    keep: int = setting(
        2, FAULTS, "Checkpoints that are kept while the run is not finished.", free=True, within=COUNT
    )
    on_nan: str = setting(
        "stop",
        FAULTS,
        "A loss that is not finite: stop, keeping the last good checkpoint, or skip that step.",
        choices=("stop", "skip"),
        free=True,
    )
    signal_grace: float = setting(
        0.0,
        FAULTS,
        "Seconds to train on after SIGTERM, SIGINT or SIGHUP; a checkpoint is saved at once and at the end.",
        free=True,
        within=Range(0, 1_000_000),
    )

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, option = getattr(self, entry.name), flag(entry.name)
            within, choices = entry.metadata["within"], entry.metadata["choices"]
            if value is None:
                continue
            if within:
                require_in(within, value, option)
            if choices and value not in choices:
                raise FastaeError(f"{option} {value!r:.60} is not one of: {', '.join(choices)}")
            if entry.metadata["path"]:
                require_path(value, option)
        if self.image_size % IMAGE_SIZE_MULTIPLE:
            raise FastaeError(
                f"--image-size must be a multiple of {IMAGE_SIZE_MULTIPLE}, not {self.image_size}"
            )

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.brightness, self.contrast, self.saturation)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str) -> TrainConfig:
        """The settings that `as_dict` wrote; ones that it did not know have their defaults.

        Raises FastaeError, naming the file `where` they are from, for anything else.
        """
        if not isinstance(values, dict):
            raise FastaeError(f"{where}: no settings of a run")
        for name in values.keys() - {entry.name for entry in dataclasses.fields(cls)}:
            raise FastaeError(f"{where}: {name!r:.80} is no setting of this version of fastae")
        try:
            return convert(values, cls)
        except (ValueError, FastaeError) as error:
            raise FastaeError(f"{where}: {error}") from None


def flag(name: str) -> str:
    """The command line's spelling of a field's name: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
