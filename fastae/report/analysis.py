"""Compares the losses of runs: an analysis of variance, then differences with intervals and verdicts.

The plan does not depend on any result. The endpoint of a run is the mean of its last evaluations
(`Comparison.ends`). A metric is modelled as loss + seed + residual, with seeds as blocks, if the losses have
at least two seeds in common; otherwise as loss + residual. The residual is pooled over all losses.

An F test comes first: whether any loss differs. Then the main effects are estimated: each element minus each
other one, as means over the reductions, and each reduction minus each other one, as means over the elements.
Reductions differ only by Adam's eps (docs/design.md). The held-out error is the primary metric. Its p values
are corrected by Holm for the number of its differences, and those of all other metrics, together, for theirs.

Two sides are *different* if the F test and the corrected p value are below 0.05, however little they differ.
Otherwise they are the *same* if two one-sided t tests (TOST) reject that they differ by a margin or more. If
neither is shown, the question is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from scipy import optimize, stats

from fastae.experiment.losses import REDUCTIONS, Loss
from fastae.report.compare import Comparison, Samples
from fastae.report.runs import PRIMARY, QUALITY, element_order

LEVEL = 0.05
"""The level of all tests. Intervals have a confidence of 1 - LEVEL."""

POWER = 0.8
"""The probability with which a difference of `Effect.detectable` is found."""

RELATIVE_MARGIN = 0.02
"""The share of the mean held-out error by which two sides must not differ to be the same."""

MINUS = "−"


@dataclass(frozen=True)
class Fit:
    """The analysis of variance of one metric."""

    means: Mapping[str, float]
    """Name of a loss -> its mean."""

    counts: Mapping[str, int]
    """Name of a loss -> the number of its runs that are analysed."""

    variance: float
    """The mean square of the pooled residual."""

    freedom: int
    """The residual's degrees of freedom."""

    blocks: int
    """The number of seeds that are blocks; 0 if the losses have fewer than two in common."""

    f: float
    p: float
    """F and its p value for the hypothesis that all losses have the same mean."""

    @property
    def mean(self) -> float:
        """The mean of the losses' means."""
        return float(np.mean([*self.means.values()]))

    @property
    def test(self) -> str:
        """The F test in words."""
        return f"F({len(self.means) - 1}, {self.freedom}) = {self.f:.2f}, p = {self.p:.2g}"


@dataclass(frozen=True)
class Contrast:
    """Two sets of losses that are compared."""

    name: str
    """The two sides, with a minus sign between them."""

    losses: tuple[str, ...]
    """The names of the losses on the first side."""

    subtracted: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """The difference between the sides of a contrast in one metric."""

    value: float

    error: float
    """The standard error of `value`."""

    freedom: int

    p: float
    """The p value of Student's t test, which `analyse` corrects."""

    margin: float | None
    """The difference from which on the sides are not the same; None if the metric has none."""

    is_different: bool = False

    @property
    def half(self) -> float:
        """Half of the length of the interval around `value`."""
        return self.error * float(stats.t.ppf(1 - LEVEL / 2, self.freedom))

    @property
    def one_sided_half(self) -> float:
        """Half of the length of TOST's interval, which has a confidence of 1 - 2 LEVEL."""
        return self.error * float(stats.t.ppf(1 - LEVEL, self.freedom))

    @property
    def is_within_margin(self) -> bool:
        """Whether two one-sided tests reject a difference of `margin` or more."""
        return self.margin is not None and abs(self.value) + self.one_sided_half < self.margin

    @property
    def verdict(self) -> str:
        """What is known about the sides: "different", "same" or "open"."""
        if self.is_different:  # also if it is a small difference, within the margin
            return "different"
        return "same" if self.is_within_margin else "open"

    def detectable(self, tests: int, losses: int) -> float:
        """Returns the difference that t test and F test each find with a probability of POWER.

        The statistics then have noncentral distributions. For the F test, it is assumed that nothing else
        differs between the losses. The t test counts if it finds the difference with the right sign.

        Args:
            tests: the number of differences for which p values are corrected.
            losses: the number of losses that the F test compares.
        """
        between, freedom = losses - 1, self.freedom
        t, f = stats.t.isf(LEVEL / (2 * tests), freedom), stats.f.isf(LEVEL, between, freedom)
        by_t = errors_found(lambda errors: stats.nct.sf(t, freedom, errors), t)
        by_f = errors_found(
            lambda errors: stats.ncf.sf(f, between, freedom, errors**2), math.sqrt(between * f)
        )
        return self.error * max(by_t, by_f)

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
class Analysis:
    """The analysis of the compared runs. It is empty without several seeds."""

    fits: Mapping[str, Fit] = field(default_factory=dict)
    """Heading of a metric -> analysis of variance."""

    effects: Mapping[Contrast, Mapping[str, Effect]] = field(default_factory=dict)
    """Contrast -> heading of a metric -> difference."""

    @property
    def primary(self) -> dict[Contrast, Effect]:
        """The differences in the held-out error."""
        return {contrast: row[PRIMARY] for contrast, row in self.effects.items() if PRIMARY in row}

    @property
    def detectable(self) -> float:
        """The largest of the primary differences that would be found, as a share of the mean error."""
        effects, losses = self.primary.values(), len(self.fits[PRIMARY].means)
        return self.share(max(effect.detectable(len(effects), losses) for effect in effects))

    def share(self, error: float) -> float:
        """Returns a held-out error as a share of the mean error; 0 if that is 0."""
        mean = self.fits[PRIMARY].mean
        return error / mean if mean else 0.0


def analyse(comparison: Comparison) -> Analysis:
    """Analyses the endpoints of the compared runs, of each metric with at least two losses and a residual."""
    return analyse_samples(comparison.endpoints, comparison.losses)


def analyse_samples(samples: Mapping[str, Samples], losses: Sequence[Loss]) -> Analysis:
    """Analyses these losses. `samples` are heading of a metric -> endpoints of the runs."""
    fits: dict[str, Fit] = {}
    effects: dict[Contrast, dict[str, Effect]] = {}
    for heading, metric in samples.items():
        if fitted := fit(metric):
            fits[heading] = fitted
            margin = RELATIVE_MARGIN * fitted.mean if heading == PRIMARY else QUALITY[heading].margin
            for contrast in contrasts([loss for loss in losses if loss.name in fitted.means]):
                effects.setdefault(contrast, {})[heading] = estimate(fitted, contrast, margin)
    for family in ({PRIMARY}, samples.keys() - {PRIMARY}):
        tests = [(row, heading) for row in effects.values() for heading in row if heading in family]
        for (row, heading), p in zip(tests, holm([row[name].p for row, name in tests]), strict=True):
            row[heading] = replace(row[heading], p=p, is_different=max(p, fits[heading].p) < LEVEL)
    return Analysis(fits, effects)


def contrasts(losses: Sequence[Loss]) -> Iterator[Contrast]:
    """Yields the contrasts between the elements, and then between the reductions, of these losses.

    The sides have the same reductions, or elements, if they have any in common. Without a common element, two
    reductions are not compared.
    """
    names = {(loss.element.name, loss.reduction.name): loss.name for loss in losses}
    elements = sorted({loss.element.name: loss.element for loss in losses}.values(), key=element_order)
    reductions = [reduction.name for reduction in REDUCTIONS if reduction.name in {name for _, name in names}]
    for other, one in combinations(elements, 2):
        have = {side.name: {name for element, name in names if element == side.name} for side in (one, other)}
        common = have[one.name] & have[other.name]
        first, second = (
            tuple(names[side, name] for name in reductions if name in (common or have[side])) for side in have
        )
        yield Contrast(f"{one.label} {MINUS} {other.label}", first, second)
    for one_name, other_name in combinations(reductions, 2):
        pairs = [[names.get((each.name, name)) for name in (one_name, other_name)] for each in elements]
        if complete := [(first, second) for first, second in pairs if first and second]:
            first, second = zip(*complete, strict=True)
            yield Contrast(f"{one_name} {MINUS} {other_name}", first, second)


def fit(samples: Samples) -> Fit | None:
    """Returns the analysis of variance; None if there are fewer than two losses, or no residual.

    Values that are not finite are omitted.
    """
    finite: dict[str, dict[int, float]] = {}
    for loss, seeds in samples.items():
        if known := {seed: value for seed, value in seeds.items() if math.isfinite(value)}:
            finite[loss] = known
    if len(finite) < 2:
        return None
    common = set.intersection(*map(set, finite.values()))
    blocks = len(common) if len(common) > 1 else 0
    values = {
        loss: np.array([seeds[seed] for seed in sorted(common if blocks else seeds)])
        for loss, seeds in finite.items()
    }
    means = {loss: float(sample.mean()) for loss, sample in values.items()}
    counts = {loss: len(sample) for loss, sample in values.items()}
    residuals = [sample - means[loss] for loss, sample in values.items()]
    between_freedom, freedom = len(values) - 1, sum(counts.values()) - len(values)
    if blocks:
        residuals = list(np.array(residuals) - np.mean(residuals, axis=0))
        freedom -= blocks - 1
    if not freedom:
        return None
    variance = float(np.square(np.concatenate(residuals)).sum()) / freedom
    grand_mean = np.concatenate([*values.values()]).mean()
    between = sum(counts[loss] * (means[loss] - grand_mean) ** 2 for loss in means) / between_freedom
    f = float(between / variance) if variance else math.inf if between else 0.0
    p = float(stats.f.sf(f, between_freedom, freedom))
    return Fit(means, counts, variance, freedom, blocks=blocks, f=f, p=p)


def estimate(fitted: Fit, contrast: Contrast, margin: float | None = None) -> Effect:
    """Returns the difference between the means of the sides, with its error by the pooled residual."""
    sides = (contrast.losses, contrast.subtracted)
    first, second = (float(np.mean([fitted.means[loss] for loss in side])) for side in sides)
    weight = sum(1 / fitted.counts[loss] / len(side) ** 2 for side in sides for loss in side)
    value, error = first - second, math.sqrt(fitted.variance * weight)
    p = 2 * float(stats.t.sf(abs(value) / error, fitted.freedom)) if error else float(value == 0)
    return Effect(value, error, fitted.freedom, p, margin)


def errors_found(power: Callable[[float], float], limit: float) -> float:
    """Returns the difference, in standard errors, that a test finds with a probability of POWER.

    Args:
        power: returns the probability with which the test finds a difference in standard errors.
        limit: the least difference in standard errors that the test calls significant.
    """
    # With one degree of freedom, the slowest case, the result is 1.3 times the limit; with many, 0.9 more.
    return float(optimize.brentq(lambda errors: power(errors) - POWER, 0.1, 2 * limit + 3))


def holm(p: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number by Holm's method (Scandinavian J. Statist. 6, 1979)."""
    values, order = np.array(p), np.argsort(p)
    corrected = np.maximum.accumulate(values[order] * np.arange(len(p), 0, -1))
    values[order] = np.minimum(corrected, 1)
    return values.tolist()
