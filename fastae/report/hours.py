"""The article's 30 hours against the time of these runs, and where that time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastae.config import TrainConfig
from fastae.losses import LOSSES
from fastae.monitor.recording import Phase
from fastae.report.gather import Run
from fastae.sweep.plan import ARTICLE_IMAGES, ARTICLE_SECONDS

ARTICLE = TrainConfig()
"""Its conditions are the defaults."""

ARTICLE_HOURS = ARTICLE_SECONDS / 3600
ARTICLE_EVALUATIONS = ARTICLE.iterations // ARTICLE.eval_every
"""Of each of its runs, at the default --eval-every."""

WAIT, STEPS, EVALUATION, STARTING = "waiting for data", "steps", "evaluation", "start, compiling, warm-up"


@dataclass(frozen=True)
class Hours:
    """wall: of all runs, one after the other. gpu: the GPU-hours among them. kwh: None unless known of all.

    projected: hours of the article's 600,000 steps of 64 images at the measured images/s; None where nothing
    was measured. evaluating: hours that evaluations and checkpoints would add, None if unknown.
    unlike: why the projection is not of the article's work; empty where it is.
    """

    wall: float
    gpu: float
    kwh: float | None
    projected: float | None
    evaluating: float | None
    unlike: str

    @property
    def total(self) -> float | None:
        """Steps, evaluations and checkpoints; of steps alone where no more is known."""
        return None if self.projected is None else self.projected + (self.evaluating or 0.0)

    @property
    def factor(self) -> float | None:
        """How many times shorter than the article's 30 hours; below 1 where it is longer."""
        return ARTICLE_HOURS / self.total if self.total else None


def hours_of(runs: Sequence[Run]) -> Hours:
    rates: dict[str, list[float]] = {}
    looks: list[float] = []
    for run in runs:
        if (rate := run.speed().images_per_second) is not None:
            rates.setdefault(run.loss, []).append(rate)
        if (look := _seconds_of_a_look(run)) is not None:
            looks.append(look)
    energies = [run.kwh for run in runs]
    known = [kwh for kwh in energies if kwh is not None]
    evaluations = ARTICLE_EVALUATIONS * len(LOSSES)
    return Hours(
        wall=sum(run.wall_seconds for run in runs) / 3600,
        gpu=sum(run.ranks * run.wall_seconds for run in runs if run.on_gpu) / 3600,
        kwh=sum(known) if known and len(known) == len(energies) else None,
        projected=project([float(np.mean(each)) for each in rates.values()]),
        evaluating=float(np.mean(looks)) * evaluations / 3600 if looks else None,
        unlike=_unlike(runs),
    )


def project(rates: Sequence[float]) -> float | None:
    """Hours for 6 x 100,000 iterations of 64 images; `rates`: images/s of each loss that was measured.

    A loss that was not is taken to run as fast as the others do on average (in time).
    """
    if not rates:
        return None
    return float(np.mean([ARTICLE_IMAGES / rate for rate in rates])) / 3600


def shares(run: Run) -> Mapping[str, float] | None:
    """Where the time of a run's last session went, in shares that add up to 1; None without a record."""
    if run.gpu is None:
        return None
    phases = run.gpu.summary.phases
    total = sum(phases.values())
    if not total > 0:
        return None
    training = phases.get(Phase.TRAIN, 0.0)
    wait = run.gpu.summary.data_wait or 0.0
    starting = sum(phases.get(phase, 0.0) for phase in (Phase.BEFORE, Phase.COMPILE, Phase.WARM_UP))
    parts = {
        STEPS: training * (1 - wait),
        WAIT: training * wait,
        EVALUATION: phases.get(Phase.EVAL, 0.0),
        STARTING: starting,
    }
    return {name: seconds / total for name, seconds in parts.items()}


def _seconds_of_a_look(run: Run) -> float | None:
    """Mean time of an evaluation with its pictures and checkpoint."""
    steps = run.held_out.steps
    looks = int((steps >= run.events.began).sum()) - (1 if run.events.began else 0)
    if run.gpu is None or looks < 1:
        return None
    seconds = run.gpu.summary.phases.get(Phase.EVAL, 0.0) / looks
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _unlike(runs: Sequence[Run]) -> str:
    words = {
        "image_size": "images of {} pixels",
        "latent": "codes of {} numbers",
        "batch_size": "batches of {}",
    }
    return ", ".join(
        told.format(" or ".join(map(str, found)))
        for name, told in words.items()
        if (found := sorted({getattr(run.config, name) for run in runs})) != [getattr(ARTICLE, name)]
    )
