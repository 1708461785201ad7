"""Chooses the runs that may be compared and the iteration, and ranks their losses there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.report.runs import Run, as_text

SAME_WORK = tuple(
    entry.name
    for entry in dataclasses.fields(TrainConfig)
    if not entry.metadata["free"] and entry.name not in ("loss", "seed", "out", "amp", "deterministic")
)
"""Settings that change what is optimized by more than rounding. Runs that differ in one are not compared."""

CONDITIONS: dict[str, Callable[[Run], Any]] = {
    "images": lambda run: (
        as_text(run.description.data.fingerprint)[:8] or as_text(run.description.data.folder)
    ),
    "ranks without --sync-bn": lambda run: "1" if run.config.sync_bn else as_text(run.description.world_size),
    **{flag(name): attrgetter(f"config.{name}") for name in SAME_WORK},
}
"""Option or description -> the value that compared runs have in common."""

FAR_ENOUGH = 0.5
"""The share of the longest run's iterations that a run needs to be compared."""


@dataclass(frozen=True)
class Comparison:
    """The losses of comparable runs at one iteration."""

    compared: tuple[Run, ...]
    """The runs that are compared."""

    at: int
    """The last iteration at which all compared runs were evaluated; 0 if there is none."""

    errors: Mapping[str, np.ndarray]
    """Loss -> held-out loss_index at this iteration, (seeds,); the loss with the lowest mean first."""

    warnings: Sequence[str]
    """Lines about runs that are unfinished, not compared, or had a loss that is not finite."""


def compare(runs: Sequence[Run]) -> Comparison:
    """Compares the runs that share the most common conditions, at the last iteration evaluated for all."""
    usual = {name: Counter(map(value, runs)).most_common(1)[0][0] for name, value in CONDITIONS.items()}
    reasons = {run.path: list(_reasons_against(run, usual)) for run in runs}
    furthest = max((run.iteration for run in runs if not reasons[run.path]), default=0)
    for run in runs:
        if not reasons[run.path] and run.iteration < FAR_ENOUGH * furthest:
            reasons[run.path].append(f"{run.iteration:,} iterations, not {furthest:,}")
    compared = [run for run in runs if not reasons[run.path]]
    steps = [set(run.held_out.finite().steps.tolist()) for run in compared]
    at = max(set.intersection(*steps), default=0) if steps else 0
    samples = by_seed(compared, "loss_index", at)
    errors = {loss: np.array(list(seeds.values())) for loss, seeds in samples.items()}
    ranked = dict(sorted(errors.items(), key=lambda item: item[1].mean()))
    warnings = []
    for run in runs:
        warnings += [f"{run.name}: {state}" for state in _states(run)]
        warnings += [f"{run.name}: not compared: {reason}" for reason in reasons[run.path]]
    return Comparison(tuple(compared), at, ranked, warnings)


def by_seed(runs: Sequence[Run], metric: str, at: int) -> dict[str, dict[int, float]]:
    """Loss -> seed -> a metric of the held-out images at an iteration, averaged over runs with that seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        found.setdefault(run.loss, {}).setdefault(run.config.seed, []).append(run.evaluated(metric).at(at))
    return {
        loss: {seed: float(np.mean(values)) for seed, values in seeds.items()}
        for loss, seeds in found.items()
    }


def _reasons_against(run: Run, usual: Mapping[str, Any]) -> Iterator[str]:
    """Yields the reasons why this run cannot be compared with runs that have the usual conditions."""
    if not len(run.held_out.finite()):
        yield "never evaluated"
    elif not ends_finite(run):
        yield "its loss is not finite at the end"
    for name, value in CONDITIONS.items():
        if value(run) != usual[name]:
            yield f"{name} {value(run)}, not {usual[name]}"


def _states(run: Run) -> Iterator[str]:
    if not run.finished:
        yield f"unfinished: iteration {run.iteration:,} of {run.config.iterations:,}"
    broken = ~np.isfinite(run.train.values)
    if broken.any() and ends_finite(run):
        yield f"its loss is not finite at iteration {int(run.train.steps[np.argmax(broken)]):,}"


def ends_finite(run: Run) -> bool:
    """Whether the last loss_index of training and that of the held-out images are finite."""
    return all(np.isfinite(series.values[-1:]).all() for series in (run.train, run.held_out))
