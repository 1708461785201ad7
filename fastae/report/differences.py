"""Differences between losses over their seeds, with 95 % confidence intervals by Student's t.

The comparisons are always the same and were fixed before any result was seen: squared error with cross
entropy, and the reductions of one element with each other, which differ only by Adam's eps (docs/design.md).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from fastae.experiment.losses import ELEMENTS, REDUCTIONS
from fastae.report.compare import Comparison, by_seed
from fastae.report.runs import METRICS

NAMES = [each.name for each in REDUCTIONS]
CONFIDENCE = 0.95
MINUS = "−"
ELEMENT = f"squared error {MINUS} cross entropy"

Samples = Mapping[int, float]
"""Seed -> value."""


@dataclass(frozen=True)
class Difference:
    """The mean of one sample minus that of another, with the confidence interval `value` +- `half`."""

    value: float
    half: float

    samples: str
    """The sizes of the samples, in words."""

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.value) > self.half

    @property
    def number(self) -> str:
        """The rounded value, with its sign."""
        return self._rounded(self.value)

    @property
    def interval(self) -> str:
        """The rounded ends of the interval."""
        return f"{self._rounded(self.value - self.half)} to {self._rounded(self.value + self.half)}"

    def _rounded(self, value: float) -> str:
        """Rounds to two digits of `half`, or of the value if the interval is a point."""
        scale = self.half or abs(self.value) or 1.0
        digits = min(6, max(0, 1 - math.floor(math.log10(scale))))
        text = f"{value:+,.{digits}f}".replace("-", MINUS)
        return text if text.strip(f"+{MINUS}0.,") else text[1:]


def comparisons() -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yields the name of each comparison, the losses on its first side, and those that are subtracted."""
    yield ELEMENT, [f"{each}_mse" for each in NAMES], [f"{each}_bce" for each in NAMES]
    for element in (e.name for e in ELEMENTS):
        for one, other in combinations(NAMES, 2):
            first, second = f"{one}_{element}", f"{other}_{element}"
            yield f"{first} {MINUS} {second}", [first], [second]


def differences(comparison: Comparison) -> dict[str, dict[str, Difference]]:
    """Returns name of a comparison -> heading of a metric -> difference, if it has an interval."""
    found: dict[str, dict[str, Difference]] = {}
    for heading, metric in METRICS.items():
        values = by_seed(comparison.compared, metric, comparison.at)
        for name, losses, others in comparisons():
            if difference := subtract(_pool(values, losses), _pool(values, others)):
                found.setdefault(name, {})[heading] = difference
    return found


def subtract(one: Samples, other: Samples) -> Difference | None:
    """Subtracts `other` from `one`: by pairs with the same seed if there are two, else by Welch's test.

    Returns None if a sample has fewer than two values.
    """
    common = sorted(one.keys() & other.keys())
    is_paired = len(common) > 1
    if not is_paired and min(len(one), len(other)) < 2:
        return None
    first, second = (
        [each[seed] for seed in common] if is_paired else [*each.values()] for each in (one, other)
    )
    with warnings.catch_warnings(action="ignore"):  # about equal values, whose interval is a point
        test = (
            stats.ttest_rel(first, second) if is_paired else stats.ttest_ind(first, second, equal_var=False)
        )
        low, high = test.confidence_interval(CONFIDENCE)
    samples = f"{len(common)} pairs" if is_paired else f"{len(first)} and {len(second)} runs, unpaired"
    return Difference(float(np.mean(first) - np.mean(second)), float(high - low) / 2, samples)


def _pool(values: Mapping[str, Samples], losses: Sequence[str]) -> dict[int, float]:
    """Returns seed -> the mean of its finite values over these losses."""
    pooled: dict[int, list[float]] = {}
    for loss in losses:
        for seed, value in values.get(loss, {}).items():
            if math.isfinite(value):
                pooled.setdefault(seed, []).append(value)
    return {seed: float(np.mean(each)) for seed, each in pooled.items()}
