"""Differences between losses over their seeds, with 95 % confidence intervals by Student's t.

The comparisons are always the same and were fixed before any result was seen: squared error with cross
entropy, and the reductions of one element with each other, which differ only by Adam's eps (docs/design.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import stdtrit

from fastae.losses import ELEMENTS, REDUCTIONS
from fastae.report.compare import Comparison, by_seed
from fastae.report.runs import METRICS

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

    sizes: tuple[int, int]
    """The number of values in each sample."""

    is_paired: bool
    """Whether the values are paired by their seeds."""

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.value) > self.half

    @property
    def number(self) -> str:
        return self._rounded(self.value)

    @property
    def interval(self) -> str:
        return f"{self._rounded(self.value - self.half)} to {self._rounded(self.value + self.half)}"

    @property
    def samples(self) -> str:
        """The sizes of the samples, in words."""
        one, other = self.sizes
        return f"{one} pairs" if self.is_paired else f"{one} and {other} runs, unpaired"

    def _rounded(self, value: float) -> str:
        """Rounds to two digits of `half`, or of the value if the interval is a point."""
        scale = self.half or abs(self.value) or 1.0
        digits = min(6, max(0, 1 - math.floor(math.log10(scale))))
        text = f"{abs(value):,.{digits}f}"
        is_zero = not text.strip("0.,")
        return text if is_zero else f"{MINUS if value < 0 else '+'}{text}"


def comparisons() -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yields the name of each comparison, the losses on its first side, and those that are subtracted."""
    yield ELEMENT, [f"{each}_mse" for each in REDUCTIONS], [f"{each}_bce" for each in REDUCTIONS]
    for element in ELEMENTS:
        for one, other in combinations(REDUCTIONS, 2):
            first, second = f"{one}_{element}", f"{other}_{element}"
            yield f"{first} {MINUS} {second}", [first], [second]


def differences(comparison: Comparison) -> dict[str, dict[str, Difference]]:
    """Comparison -> heading of a metric -> difference, for differences that have an interval."""
    found: dict[str, dict[str, Difference]] = {}
    for heading, metric in METRICS.items():
        values = by_seed(comparison.compared, metric, comparison.at)
        for name, losses, others in comparisons():
            if difference := subtract(_pool(values, losses), _pool(values, others)):
                found.setdefault(name, {})[heading] = difference
    return found


def subtract(one: Samples, other: Samples) -> Difference | None:
    """`one` minus `other`, over pairs with the same seed if there are at least two, else by Welch's test.

    Returns None if a sample has fewer than two values.
    """
    if len(common := sorted(one.keys() & other.keys())) > 1:
        pairs = np.array([one[seed] - other[seed] for seed in common])
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
        sizes = len(pairs), len(pairs)
        return Difference(float(pairs.mean()), _quantile(len(pairs) - 1) * error, sizes, is_paired=True)
    if min(len(one), len(other)) < 2:
        return None
    first, second = np.array(list(one.values())), np.array(list(other.values()))
    squares = np.array([each.var(ddof=1) / len(each) for each in (first, second)])
    freedom = np.array([len(first) - 1, len(second) - 1])
    error = math.sqrt(squares.sum())
    # Welch and Satterthwaite's degrees of freedom; any number will do if the variance is zero.
    effective = squares.sum() ** 2 / (squares**2 / freedom).sum() if error else freedom.sum()
    value = float(first.mean() - second.mean())
    return Difference(value, _quantile(effective) * error, (len(first), len(second)), is_paired=False)


def _quantile(freedom: float) -> float:
    """The half-width of an interval in standard errors."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _pool(values: Mapping[str, Samples], losses: Sequence[str]) -> dict[int, float]:
    """Seed -> the mean of its finite values over these losses."""
    pooled: dict[int, list[float]] = {}
    for loss in losses:
        for seed, value in values.get(loss, {}).items():
            if math.isfinite(value):
                pooled.setdefault(seed, []).append(value)
    return {seed: float(np.mean(each)) for seed, each in pooled.items()}
