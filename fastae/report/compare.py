"""Finds which runs are compared, and at which iteration, and which runs form one curve."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from fastae.config import FIXED, flag
from fastae.experiment.losses import Loss
from fastae.report.runs import QUALITY, Run, as_text
from fastae.utils.console import printable

GROUPED_BY: dict[str, Callable[[Run], Any]] = {
    "images": lambda run: (
        as_text(run.description.data.fingerprint)[:8] or as_text(run.description.data.folder)
    ),
    "model": attrgetter("model"),
    **{flag(name): attrgetter(f"config.{name}") for name in FIXED if name not in ("loss", "seed")},
}
"""What the runs of a curve have in common besides the loss: name of an option or condition -> its value."""

COMPARED_BY = {name: value for name, value in GROUPED_BY.items() if name not in ("--amp", "--deterministic")}
"""What compared runs have in common: everything that changes what is optimized by more than rounding."""

LAST_EVALUATIONS = 4
"""The number of a run's evaluations whose mean is its endpoint."""

FAR_ENOUGH = 0.5
"""The share of the longest run's iterations that a run needs to be compared."""

Samples = Mapping[str, Mapping[int, float]]
"""Name of a loss -> seed -> endpoint of a run."""


@dataclass(frozen=True)
class Comparison:
    """The losses of comparable runs at their endpoint: the mean of their last common evaluations."""

    compared: tuple[Run, ...]
    """The runs that are compared."""

    evaluated: tuple[int, ...]
    """The iterations after 0 at which all compared runs were evaluated."""

    endpoints: Mapping[str, Samples]
    """Heading of a metric -> its means over `ends`; empty if there are no `ends`."""

    warnings: Sequence[str]
    """Lines about runs that are unfinished, not compared, or had a loss that is not finite."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The last iterations of `evaluated`, four at most."""
        return self.evaluated[-LAST_EVALUATIONS:]

    @property
    def losses(self) -> list[Loss]:
        """The losses of the compared runs, each once."""
        return list({run.loss.name: run.loss for run in self.compared}.values())


def compare(runs: Sequence[Run]) -> Comparison:
    """Compares the runs that share the most common conditions, at the last iterations evaluated for all."""
    conditions = Counter(tuple(value(run) for value in COMPARED_BY.values()) for run in runs)
    usual = dict(zip(COMPARED_BY, conditions.most_common(1)[0][0], strict=True))
    reasons = {run: list(_reasons_against(run, usual)) for run in runs}
    furthest = max((run.iteration for run in runs if not reasons[run]), default=0)
    for run in runs:
        if not reasons[run] and run.iteration < FAR_ENOUGH * furthest:
            reasons[run].append(f"{run.iteration:,} iterations, not {furthest:,}")
    compared = [run for run in runs if not reasons[run]]
    steps = [{step for step, value in run.held_out.items() if math.isfinite(value)} for run in compared]
    evaluated = tuple(sorted(set.intersection(*steps) - {0})) if steps else ()
    ends = evaluated[-LAST_EVALUATIONS:]
    metrics = QUALITY.items() if ends else ()
    endpoints = {heading: by_seed(compared, metric.column, ends) for heading, metric in metrics}
    warnings = []
    for run in runs:
        warnings += [f"{run.name}: {state}" for state in _states(run)]
        warnings += [f"{run.name}: not compared: {reason}" for reason in reasons[run]]
    return Comparison(tuple(compared), evaluated, endpoints=endpoints, warnings=warnings)


def by_seed(runs: Sequence[Run], metric: str, ends: Sequence[int]) -> Samples:
    """Returns loss -> seed -> mean of a held-out metric over iterations. The first run with a seed counts."""
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        logged = run.evaluated(metric)
        value = float(np.mean([logged.get(step, math.nan) for step in ends]))
        values.setdefault(run.loss.name, {}).setdefault(run.config.seed, value)
    return values


def _reasons_against(run: Run, usual: Mapping[str, Any]) -> Iterator[str]:
    """Yields the reasons why this run cannot be compared with runs that have the usual conditions."""
    if not any(map(math.isfinite, run.held_out.values())):
        yield "never evaluated"
    elif not ends_finite(run):
        yield "its loss is not finite at the end"
    for name, value in COMPARED_BY.items():
        if value(run) != usual[name]:
            yield f"{name} {value(run)}, not {usual[name]}"


def _states(run: Run) -> Iterator[str]:
    """Yields warnings that a run is unfinished, or had a loss that is not finite before its end."""
    if not run.finished:
        yield f"unfinished: iteration {run.iteration:,} of {run.config.iterations:,}"
    broken = [step for step, value in run.train.items() if not math.isfinite(value)]
    if broken and ends_finite(run):
        yield f"its loss is not finite at iteration {broken[0]:,}"


def ends_finite(run: Run) -> bool:
    """Returns whether the last loss_index of training and that of the held-out images are finite."""
    return all(math.isfinite(rows.last("loss_index")) for rows in (run.metrics.train, run.metrics.held_out))


@dataclass(frozen=True)
class Group:
    """Runs of one loss that share GROUPED_BY and have different seeds."""

    label: str
    """The loss and, if other runs of the report have other settings, the options that differ."""

    runs: tuple[Run, ...]

    @property
    def loss(self) -> Loss:
        return self.runs[0].loss


def group_seeds(runs: Sequence[Run]) -> list[Group]:
    """Divides the runs into groups, in the order of their first runs.

    A run forms its own group, with its name in the label, if another run has the same settings and seed, if
    its last loss is not finite, or if it has less than half of the iterations of the longest run.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.loss.name, *(value(run) for value in GROUPED_BY.values())), []).append(run)
    groups = []
    for same in alike.values():
        label = " ".join((same[0].loss.name, *_differing(same[0], runs)))
        together = _one_per_seed(same)
        alone = [(run,) for run in same if run not in together]
        for members in filter(None, [together, *alone]):
            name = f" ({printable(members[0].name)})" if len(same) > len(members) == 1 else ""
            groups.append(Group(f"{label}{name}", members))
    return groups


def _one_per_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """One run per seed, without runs that are too short or end in a loss that is not finite."""
    furthest = max(run.iteration for run in runs)
    seeds: dict[int, Run] = {}
    for run in runs:
        if ends_finite(run) and run.iteration >= FAR_ENOUGH * furthest:
            seeds.setdefault(run.config.seed, run)
    return tuple(seeds.values())


def _differing(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    """Yields the settings of `run` that most runs do not share, as a user types them."""
    for name, value in GROUPED_BY.items():
        if 2 * sum(value(other) == value(run) for other in runs) <= len(runs):
            yield _typed(name, value(run))


def _typed(name: str, value: object) -> str:
    """Returns a setting as a user types it."""
    if isinstance(value, bool):
        return name if value else f"--no-{name.removeprefix('--')}"
    return f"no {name}" if value is None else f"{name} {value}"
