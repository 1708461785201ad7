"""Which runs may be compared, at which iteration, and how their losses rank there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.report.runs import Run

SAME_WORK = tuple(
    entry.name
    for entry in dataclasses.fields(TrainConfig)
    if not entry.metadata["free"] and entry.name not in ("loss", "seed", "out", "amp", "deterministic")
)
"""Settings that change what is optimised, by more than rounding: runs that differ in one are not compared."""

FAR_ENOUGH = 0.5
"""Of the iterations of the run that went furthest: one that got less far is not compared."""


@dataclass(frozen=True)
class Comparison:
    """compared: the runs that the answer is about. marks: by folder, what sets a run apart, mostly nothing.

    at: the last iteration at which all compared runs were evaluated, 0 if there is none.
    errors: loss -> held-out loss_index there, (seeds,); the lowest mean first.
    """

    compared: tuple[Run, ...]
    at: int
    errors: Mapping[str, np.ndarray]
    marks: Mapping[Path, tuple[str, ...]]

    @property
    def best(self) -> str:
        return next(iter(self.errors))

    @property
    def worst(self) -> str:
        return list(self.errors)[-1]

    @property
    def difference(self) -> float:
        """Of the means of worst and best, in loss_index."""
        return float(self.errors[self.worst].mean() - self.errors[self.best].mean())

    @property
    def deviation(self) -> float | None:
        """The largest standard deviation of the runs of one loss; None if no loss has several seeds."""
        several = [errors.std(ddof=1) for errors in self.errors.values() if len(errors) > 1]
        return float(max(several)) if several else None


def compare(runs: Sequence[Run]) -> Comparison:
    """Compares every run with what most have in common."""
    marks = {run.path: list(_states(run)) for run in runs}
    alike = [run for run in runs if len(run.held_out.finite()) and _ends_finite(run)]
    for what, value_of in _conditions():
        values = {run.path: value_of(run) for run in runs}
        usual = Counter(values.values()).most_common(1)[0][0]
        odd = [run for run in runs if values[run.path] != usual]
        for run in odd:
            marks[run.path].append(f"not compared: {what} {values[run.path]}, not {usual}")
        alike = [run for run in alike if run not in odd]
    furthest = max((run.iteration for run in alike), default=0)
    compared = [run for run in alike if run.iteration >= FAR_ENOUGH * furthest]
    for run in alike:
        if run not in compared:
            marks[run.path].append(f"not compared: {run.iteration:,} iterations, not {furthest:,}")
    steps = [set(run.held_out.finite().steps.tolist()) for run in compared]
    at = max(set.intersection(*steps), default=0) if steps else 0
    by_seed: dict[str, dict[int, float]] = {}
    for run in compared:  # two runs of one seed are one draw, not two
        by_seed.setdefault(run.loss, {})[run.config.seed] = run.held_out.at(at)
    errors = {loss: np.array(list(seeds.values())) for loss, seeds in by_seed.items()}
    ranked = dict(sorted(errors.items(), key=lambda item: item[1].mean()))
    return Comparison(tuple(compared), at, ranked, {path: tuple(each) for path, each in marks.items()})


def _conditions() -> Iterator[tuple[str, Callable[[Run], object]]]:
    yield "images", lambda run: run.text("data", "fingerprint")[:8] or run.text("data", "folder")
    for name in SAME_WORK:
        yield flag(name), partial(_setting, name)


def _setting(name: str, run: Run) -> object:
    return getattr(run.config, name)


def _ends_finite(run: Run) -> bool:
    return all(np.isfinite(series.values[-1:]).all() for series in (run.train, run.held_out))


def _states(run: Run) -> Iterator[str]:
    if not run.ended:
        yield f"unfinished: iteration {run.iteration:,} of {run.config.iterations:,}"
    if lost := run.non_finite_steps():
        yield f"{lost:,} step{'s' * (lost > 1)} without a finite loss"
    broken = ~np.isfinite(run.train.values)
    if not _ends_finite(run):
        yield "not compared: not finite at its end"
    elif broken.any():
        yield f"not finite at iteration {int(run.train.steps[np.argmax(broken)]):,}"
