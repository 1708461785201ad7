"""Which runs may be compared, where, and what the comparison says: differences, and the spread of seeds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import studentized_range

from fastae.config import TrainConfig, flag
from fastae.losses import LOSSES
from fastae.report.gather import Run

SAME_SPEED = ("amp", "deterministic", "compile", "channels_last", "loader", "threads")
"""Settings that change how fast it is learnt, and results by rounding alone."""

SAME_WORK = tuple(
    entry.name
    for entry in dataclasses.fields(TrainConfig)
    if not entry.metadata["free"] and entry.name not in ("loss", "seed", "out", *SAME_SPEED)
)
"""Settings that change what is learnt: runs that differ in one are not compared."""

FAR_ENOUGH = 0.5
"""Of the iterations of the run that went furthest: one that got less far is not compared."""


@dataclass(frozen=True)
class Mixture:
    """What does not belong together. marks: what sets a run apart, by its folder; none for most runs.

    compared: the runs that the answer is about. at: the last iteration at which all of those were evaluated.
    """

    compared: tuple[Run, ...]
    at: int
    marks: Mapping[Path, tuple[str, ...]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Seeds:
    """The spread of runs that differ by their seed alone.

    deviation: standard deviation of loss_index within a loss, pooled over the losses with several seeds;
    freedom: its degrees of freedom. difference: the largest between two losses' means. chance: how often
    seeds alone would bring about one as large (Tukey's studentized range).
    """

    deviation: float
    freedom: int
    difference: float
    chance: float


@dataclass(frozen=True)
class Standing:
    """The compared runs' held-out loss_index at iteration `at`, of each loss the mean over its seeds.

    errors: best first. start: the mean at iteration 0, nan where it was not logged. seeds: None where no loss
    was run twice, or only one loss was run.
    """

    at: int
    errors: Mapping[str, float]
    start: float
    seeds: Seeds | None

    @property
    def best(self) -> str:
        return next(iter(self.errors))

    @property
    def worst(self) -> str:
        return list(self.errors)[-1]

    @property
    def range(self) -> float:
        """Of the best and worst loss, relative to the mean of all; 0 where none has an error."""
        return (self.errors[self.worst] - self.errors[self.best]) / self.mean if self.mean else 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.errors.values())))

    def of_element(self, element: str) -> list[float]:
        """The errors of the losses with this element, "bce" or "mse"."""
        return [error for loss, error in self.errors.items() if loss.endswith(element)]


def find_mixture(runs: Sequence[Run]) -> Mixture:
    """Holds every run against what most have in common."""
    findings = [*_unlike(runs), *_states(runs)]
    apart = {path for finding in findings if finding.apart for path in finding.marks}
    alike = [run for run in runs if run.path not in apart and len(run.held_out)]
    findings += _too_short(alike)
    apart = {path for finding in findings if finding.apart for path in finding.marks}
    compared = [run for run in alike if run.path not in apart]
    steps = [set(run.held_out.finite().steps.tolist()) for run in compared]
    at = max(set.intersection(*steps), default=0) if steps else 0
    findings += _uneven(compared, at)
    marks = {
        run.path: tuple(each.marks[run.path] for each in findings if run.path in each.marks) for run in runs
    }
    return Mixture(tuple(compared), at, marks, tuple(finding.warning for finding in findings))


@dataclass(frozen=True)
class _Finding:
    """marks: what to put beside which run. apart: whether that keeps those runs out of the comparison."""

    warning: str
    marks: Mapping[Path, str]
    apart: bool = False


def _unlike(runs: Sequence[Run]) -> Iterator[_Finding]:
    """Of each condition, the runs that do not have it as most do."""
    for what, value_of, apart in _conditions():
        values = {run.path: value_of(run) for run in runs}
        usual = Counter(values.values()).most_common(1)[0][0]
        odd = [run for run in runs if values[run.path] != usual]
        if odd:
            having = "; ".join(f"{run.name} has {values[run.path]}" for run in odd)
            consequence = "not compared with them" if apart else "their speeds do not compare"
            yield _Finding(
                f"different {what}: {having}, the others {usual}; {consequence}",
                {run.path: f"{what} {values[run.path]}, not {usual}" for run in odd},
                apart,
            )


def _conditions() -> Iterator[tuple[str, Callable[[Run], str], bool]]:
    """Name, how it is read of a run, and whether runs that differ in it are not compared."""
    yield "data", _data, True
    for name in SAME_WORK:
        yield flag(name), partial(_setting, name), True
    yield "device", lambda run: run.told("device"), False
    for name in SAME_SPEED:
        yield flag(name), partial(_setting, name), False


def _states(runs: Sequence[Run]) -> Iterator[_Finding]:
    """Runs that did not come to their end, and those that came to an evil one."""
    for run in runs:
        if not run.ended:
            reached = f"unfinished: iteration {run.iteration:,} of {run.config.iterations:,}"
            yield _Finding(f"{run.name} is {reached}", {run.path: reached})
        if lost := run.non_finite_steps():
            mark = f"{lost:,} steps without a finite loss" if lost > 1 else "a step without a finite loss"
            yield _Finding(f"{run.name} had {mark}", {run.path: mark})
        for series in (run.train, run.held_out):
            broken = ~np.isfinite(series.values)
            if broken.any():
                mark = f"not a number at iteration {int(series.steps[np.argmax(broken)]):,}"
                lasting = bool(broken[-1])
                yield _Finding(
                    f"{run.name}: {mark}{' and after' if lasting else ''}", {run.path: mark}, lasting
                )
                break


def _too_short(runs: Sequence[Run]) -> Iterator[_Finding]:
    furthest = max((run.iteration for run in runs), default=0)
    for run in runs:
        if run.iteration < FAR_ENOUGH * furthest:
            mark = f"only {run.iteration:,} iterations, {furthest:,} elsewhere"
            yield _Finding(f"{run.name} has {mark}: not compared", {run.path: mark}, True)


def _uneven(runs: Sequence[Run], at: int) -> Iterator[_Finding]:
    ends = {run.iteration for run in runs}
    if len(ends) > 1:
        yield _Finding(
            f"the runs end at different iterations, {min(ends):,} to {max(ends):,}: they are compared at "
            f"iteration {at:,}, the last at which all were evaluated",
            {},
        )
    counts = Counter((run.loss, run.config.seed) for run in runs)
    if again := [f"{loss} with seed {seed}" for (loss, seed), count in counts.items() if count > 1]:
        yield _Finding(f"run more than once: {', '.join(again)}; the last of them counts", {})


def standing(mixture: Mixture) -> Standing | None:
    """None where nothing can be compared: not even one run has a finite held-out error."""
    finals: dict[str, dict[int, float]] = {}
    for run in mixture.compared:
        # Two runs of one seed are one draw, not two.
        finals.setdefault(run.loss, {})[run.config.seed] = run.held_out.at(mixture.at)
    if not finals:
        return None
    values = {loss: list(of_seeds.values()) for loss, of_seeds in finals.items()}
    means = {loss: float(np.mean(each)) for loss, each in values.items()}
    starts = [run.held_out.at(0) for run in mixture.compared]
    return Standing(
        mixture.at,
        dict(sorted(means.items(), key=lambda item: item[1])),
        float(np.mean(starts)),
        _seeds(values),
    )


def _seeds(values: Mapping[str, Sequence[float]]) -> Seeds | None:
    freedom = sum(len(each) - 1 for each in values.values())
    if not freedom or len(values) < 2:
        return None
    within = sum(float(np.square(np.array(each) - np.mean(each)).sum()) for each in values.values())
    deviation = float(np.sqrt(within / freedom))
    ranked = sorted(values.values(), key=np.mean)
    best, worst = ranked[0], ranked[-1]
    difference = float(np.mean(worst) - np.mean(best))
    error = deviation * np.sqrt((1 / len(best) + 1 / len(worst)) / 2)
    if not error:
        return Seeds(deviation, freedom, difference, 0.0 if difference else 1.0)
    chance = float(studentized_range.sf(difference / error, len(values), freedom))
    return Seeds(deviation, freedom, difference, chance)


def in_order(losses: Iterable[str]) -> list[str]:
    """These losses, each once, in the article's order."""
    present = set(losses)
    return [loss for loss in LOSSES if loss in present]


def _data(run: Run) -> str:
    train, held_out = run.told("data", "train"), run.told("data", "held_out")
    fingerprint = run.told("data", "fingerprint")
    which = f"fingerprint {fingerprint:.8}" if fingerprint else run.told("data", "folder")
    return f"{train} + {held_out} images ({which})"


def _setting(name: str, run: Run) -> str:
    """The value as text; of what a run chooses by itself, what it chose."""
    chosen = {"compile": "compiled", "loader": "loader"}.get(name, "")
    value = run.description.get(chosen, getattr(run.config, name))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else str(value)
