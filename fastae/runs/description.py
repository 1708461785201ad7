"""Describes a run: settings, data, device and versions, as in config.json and in every checkpoint.

Anybody may have written these files, and older versions of fastae wrote fewer fields. Therefore every field
but the settings has a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from fastae.config import TrainConfig
from fastae.experiment.losses import Loss, loss_described
from fastae.utils.console import printable
from fastae.utils.json import convert


@dataclass(frozen=True)
class DataDescription:
    """The images of a run."""

    source: str | None = None
    """Where the images are from, in words."""

    folder: str | None = None
    """The absolute path of the images' folder."""

    train: int | None = None
    """The number of images to train on."""

    held_out: int | None = None
    """The number of images that are held out."""

    split: str | None = None
    """How the images were divided, in words."""

    evaluated_on: int | None = None
    """The number of held-out images that are evaluated on."""

    fingerprint: str | None = None
    """The manifest's digest: the same for the same files."""


@dataclass(frozen=True)
class Environment:
    """The versions that a run was made with, as `utils.environment.describe_environment` returns them."""

    fastae: str | None = None
    commit: str | None = None
    python: str | None = None
    platform: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Name of a distribution -> its version."""


@dataclass(frozen=True)
class RunDescription:
    """What a run is made with. A field that is not known has its default."""

    config: TrainConfig

    model: str | None = None
    """The qualified name of the model's class or function."""

    element: str | None = None
    """The name of the loss's element."""

    reduction: str | None = None
    """The name of the loss's reduction."""

    data: DataDescription = DataDescription()
    loader: str | None = None
    """dali, resident or host: the loader that was chosen."""

    compiled: bool | None = None
    """Whether torch.compile was used."""

    device: str | None = None
    """The device's name, with its memory or number of cores."""

    device_type: str | None = None
    """cpu or cuda."""

    world_size: int = 1
    """The number of ranks that shared the run."""

    step: str | None = None
    """How a step is computed, in words."""

    environment: Environment = Environment()
    resumed: tuple[int, ...] = ()
    """The iterations from which the run was resumed."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the description as plain JSON values."""
        return dataclasses.asdict(self)

    @property
    def loss(self) -> Loss:
        """The loss. The element of a user's own has no function here. Raises ValueError if it is none."""
        return loss_described(self.config.loss, self.element, self.reduction)

    def differences(self, earlier: RunDescription) -> Iterator[str]:
        """Yields lines about what differs from an `earlier` session and changes a run's results."""
        before, now = (
            {
                "device": each.device,
                "loader": each.loader,
                "compiled": each.compiled,
                **each.environment.packages,
            }
            for each in (earlier, self)
        )
        for name, value in now.items():
            if before.get(name) not in (None, value):
                yield f"{name} was {printable(str(before[name]))}, is {value}: results agree up to rounding"
        if earlier.model not in (None, self.model):
            yield f"model was {printable(earlier.model)}, is {self.model}: it must compute the same"
        if earlier.world_size != self.world_size:
            yield f"ranks were {earlier.world_size}, are {self.world_size}: results agree up to rounding"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> RunDescription:
        """Returns the description that `as_dict` returned as `values`.

        A part that is missing or of another type gets its default. Raises FastaeError if the settings are not
        valid, naming `where`, the file that the values are from.
        """
        known: dict[str, Any] = {"config": TrainConfig.from_dict(values.get("config"), where)}
        for name, kind in get_type_hints(cls).items():
            if name in values.keys() - known.keys():
                with suppress(ValueError):
                    known[name] = convert(values[name], kind)
        return cls(**known)
