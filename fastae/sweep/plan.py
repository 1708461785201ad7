"""What a sweep trains: its settings, from which alone the name, loss and seed of each run follow."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastae.config import FIXED, TrainConfig
from fastae.errors import FastaeError
from fastae.experiment.definition import Experiment
from fastae.utils.arguments import Range, require_int

MAX_REPEATS = 1000
REPEATS = Range(1, MAX_REPEATS)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """The name of the run's folder: its loss, with -2, -3, ... for repeats."""

    loss: str
    seed: int


@dataclass(frozen=True)
class SweepConfig:
    """The settings of a sweep. FastaeError is raised for invalid ones."""

    train: TrainConfig
    """The settings of all runs. Only loss, folder and seed differ; seeds are counted from this seed."""

    losses: Sequence[str] = ()
    """The names of the losses, each once. Default: all of the experiment's."""

    repeats: int = 1
    """The number of runs of each loss, with different seeds."""

    same_init: bool = True
    """Whether the losses of a repeat share a seed, and so the initial weights, images and augmentation."""

    experiment: Experiment = field(default_factory=Experiment)

    def __post_init__(self) -> None:
        names = tuple(self.losses or self.experiment.losses)
        if unknown := [name for name in names if name not in self.experiment.losses]:
            known = ", ".join(self.experiment.losses)
            raise FastaeError(f"--losses {', '.join(map(str, unknown))!r}: not one of {known}")
        if len(set(names)) < len(names):
            raise FastaeError("--losses must name no loss twice")
        object.__setattr__(self, "losses", tuple(name for name in self.experiment.losses if name in names))
        object.__setattr__(self, "repeats", require_int(self.repeats, "repeats", REPEATS))
        replace(self.train, seed=max(run.seed for run in self.runs()))  # raises if a seed is too large

    @property
    def has_article_size(self) -> bool:
        """Whether a step takes as many FLOPs as the article's, so that training times can be compared."""
        return self.train.has_article_size and self.experiment.make_model is None

    def runs(self) -> tuple[PlannedRun, ...]:
        """Returns one run of each loss, then the repeats with the next seeds."""
        planned = []
        for repeat in range(self.repeats):
            for loss in self.losses:
                # The number of a loss follows from its name, so that other losses do not change it.
                own = 0 if self.same_init else MAX_REPEATS * (zlib.crc32(loss.encode()) % 1_000_000)
                name = loss if repeat == 0 else f"{loss}-{repeat + 1}"
                planned.append(PlannedRun(name, loss, self.train.seed + own + repeat))
        return tuple(planned)

    def runs_of(self, rank: int, ranks: int) -> tuple[PlannedRun, ...]:
        """Returns the runs that a rank trains, if so many ranks share the runs."""
        return self.runs()[rank::ranks]

    def settings(self) -> dict[str, Any]:
        """Returns the settings that cannot change when the sweep is resumed, as in sweep.json."""
        settings = {name: getattr(self.train, name) for name in FIXED if name != "loss"}
        return {
            "model": self.experiment.model_name,
            "losses": list(self.losses),
            "repeats": self.repeats,
            "same_init": self.same_init,
            "iterations": self.train.iterations,
            "minutes": self.train.minutes,
            **settings,
        }
