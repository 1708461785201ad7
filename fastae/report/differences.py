"""Differences between losses over their seeds, with 95 % confidence intervals by Student's t.

Which losses are compared follows from the losses alone, never from a result: each element with each other
one, and the reductions of one element with each other, which differ only by Adam's eps (docs/design.md).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from fastae.experiment.losses import Loss
from fastae.report.compare import Comparison, by_seed
from fastae.report.runs import QUALITY, element_order

CONFIDENCE = 0.95
MINUS = "−"

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


@dataclass(frozen=True)
class Contrast:
    """Two sets of losses that are compared."""

    name: str
    """The two sides, with a minus sign between them."""

    losses: tuple[str, ...]
    """The names of the losses on the first side."""

    subtracted: tuple[str, ...]

    is_of_elements: bool
    """Whether the sides are all losses of two elements, not two reductions of one element."""


Differences = Mapping[Contrast, Mapping[str, Difference]]
"""Contrast -> heading of a metric -> difference."""


def contrasts(losses: Sequence[Loss]) -> Iterator[Contrast]:
    """Yields the contrasts between these losses, which are in the order of reports."""
    elements = {loss.element.name: loss.element for loss in losses}
    ordered = sorted(elements.values(), key=element_order)
    names = {
        element.name: tuple(loss.name for loss in losses if loss.element == element) for element in ordered
    }
    for other, one in combinations(ordered, 2):
        name = f"{one.label} {MINUS} {other.label}"
        yield Contrast(name, names[one.name], names[other.name], is_of_elements=True)
    for reductions in names.values():
        for first, second in combinations(reductions, 2):
            yield Contrast(f"{first} {MINUS} {second}", (first,), (second,), is_of_elements=False)


def differences(comparison: Comparison) -> dict[Contrast, dict[str, Difference]]:
    """Returns the differences of the compared runs that have an interval."""
    table: dict[Contrast, dict[str, Difference]] = {}
    for heading, metric in QUALITY.items():
        values = by_seed(comparison.compared, metric, comparison.at)
        for contrast in contrasts(comparison.losses):
            one, other = _pool(values, contrast.losses), _pool(values, contrast.subtracted)
            if difference := subtract(one, other):
                table.setdefault(contrast, {})[heading] = difference
    return table


def subtract(one: Samples, other: Samples) -> Difference | None:
    """Subtracts `other` from `one`: by pairs with the same seed if there are two, else by Welch's test.

    Returns None if a sample has fewer than two values.
    """
    common = sorted(one.keys() & other.keys())
    is_paired = len(common) > 1
    if not is_paired and min(len(one), len(other)) < 2:
        return None
    with warnings.catch_warnings(action="ignore"):  # about equal values, whose interval is a point
        if is_paired:
            first, second = [one[seed] for seed in common], [other[seed] for seed in common]
            test, samples = stats.ttest_rel(first, second), f"{len(common)} pairs"
        else:
            first, second = [*one.values()], [*other.values()]
            test = stats.ttest_ind(first, second, equal_var=False)
            samples = f"{len(first)} and {len(second)} runs, unpaired"
        low, high = test.confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(first) - np.mean(second)), float(high - low) / 2, samples)


def _pool(values: Mapping[str, Samples], losses: Sequence[str]) -> dict[int, float]:
    """Returns seed -> the mean of its finite values over these losses."""
    pooled: dict[int, list[float]] = {}
    for loss in losses:
        for seed, value in values.get(loss, {}).items():
            if math.isfinite(value):
                pooled.setdefault(seed, []).append(value)
    return {seed: float(np.mean(known)) for seed, known in pooled.items()}
