"""Makes the report's answer and tables as text, which the page escapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, compress
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastae.config import TrainConfig, flag
from fastae.experiment.article import (
    ARTICLE_IMAGES,
    ARTICLE_ITERATIONS,
    ARTICLE_LOSSES,
    ARTICLE_SECONDS,
    speed_ratio,
)
from fastae.report.analysis import LEVEL, MINUS, POWER, RELATIVE_MARGIN, Analysis, Effect
from fastae.report.compare import Comparison, Group
from fastae.report.runs import PRIMARY, QUALITY, Run, as_text
from fastae.utils.console import duration

LONG_ENOUGH = 0.5
"""The share of the article's training below which the headline concludes nothing."""

NONE, NOT_SET = "–", "not set"
NOT_LISTED = ("--loss", "--seed", "--out", "--data", "images, source", "images, fingerprint")
"""Settings that are not listed, since the table of runs has them or another entry says the same."""

COLUMNS: dict[str, Callable[[float], str]] = {
    "iterations": "{:,.0f}".format,
    **{heading: metric.form for heading, metric in QUALITY.items()},
    "images/s": "{:,.1f}".format,
    "training": duration,
    "energy": "{:.3g} kWh".format,
}


class Cell(NamedTuple):
    """A cell of a table."""

    text: str

    detail: str = ""
    """A small text below it."""

    is_bold: bool = False


class Row(NamedTuple):
    """A row of a table."""

    cells: Sequence[Cell]
    """The row's name, and then its values."""

    seeds: int = 1
    """The number of seeds whose mean the row is."""


class Table(NamedTuple):
    """A table of the report."""

    head: Sequence[str]
    rows: Sequence[Row]


def answer(comparison: Comparison, label: str, analysis: Analysis) -> tuple[str, list[str]]:
    """Makes a headline and a few sentences from the numbers.

    Args:
        comparison: the comparison of the losses.
        label: the label of the compared runs, which is used if all have the same loss.
        analysis: the analysis of the comparison.
    """
    if not comparison.ends:
        return "Nothing to compare yet", [
            "The runs share no iteration, after the first, at which all of them were evaluated."
        ]
    errors = {loss: [*seeds.values()] for loss, seeds in comparison.endpoints[PRIMARY].items()}
    ranked = sorted(errors, key=lambda loss: float(np.mean(errors[loss])))
    means = {loss: mean_text(errors[loss], QUALITY[PRIMARY].form) for loss in ranked}
    length = percent(trained_share(comparison))
    first, at = comparison.ends[0], comparison.ends[-1]
    when = f"at iteration {at:,}" if first == at else f"over the evaluations from {first:,} to {at:,}"
    if len(means) == 1:
        start = comparison.compared[0].held_out.get(0, math.nan)
        began = f" The error was {start:,.0f} before the first iteration." if math.isfinite(start) else ""
        headline = f"{label}: a held-out error of {next(iter(means.values()))} {when}"
        return headline, [f"That is {length} of the article's training.{began}"]
    sentences = [
        f"The mean held-out error {when} is {', '.join(f'{means[loss]} for {loss}' for loss in means)}."
    ]
    if not analysis.primary:
        sentences.append(
            "There are too few seeds to tell a difference from chance: fastae sweep --repeats 3."
        )
    headline = verdict(analysis)
    if trained_share(comparison) < LONG_ENOUGH:
        sentences.append(f"So far: {headline[0].lower()}{headline[1:]}.")
        headline = f"Too short to tell: {length} of the article's training"
    return headline, sentences


def verdict(analysis: Analysis) -> str:
    """Returns what the held-out error shows, with the limits of what these runs can show."""
    effects = analysis.primary
    if not effects:
        return "No difference can be shown without repeats"
    different = []
    for contrast, effect in effects.items():
        if effect.is_different:
            sign = MINUS if effect.value < 0 else "+"
            share = percent(abs(analysis.share(effect.value)))
            different.append(f"{contrast.name} is {sign}{share}")
    limit = f"differences from {percent(analysis.detectable)} on would have shown"
    if different:
        return f"The losses differ: {', '.join(different)} of the error; {limit}"
    if all(effect.is_within_margin for effect in effects.values()):
        return f"The losses are the same within {percent(RELATIVE_MARGIN)} of the error; {limit}"
    return f"No difference shown; {limit}"


def trained_share(comparison: Comparison) -> float:
    """Returns how much of one of the article's runs each compared run has done, in images."""
    images = comparison.ends[-1] * comparison.compared[0].config.batch_size
    return images * ARTICLE_LOSSES / ARTICLE_IMAGES


def difference_table(analysis: Analysis) -> Table:
    """Returns the table of differences. Those that are different are bold."""
    rows = []
    for contrast, row in analysis.effects.items():
        cells = [Cell(contrast.name)]
        for heading in analysis.fits:
            effect = row.get(heading)
            cells.append(_difference(effect) if effect else Cell(NONE))
        rows.append(Row(cells))
    return Table([f"difference, {percent(1 - LEVEL)} interval", *analysis.fits], rows)


def _difference(effect: Effect) -> Cell:
    """Returns a difference with its interval and its verdict."""
    within = ", within the margin" if effect.is_different and effect.is_within_margin else ""
    return Cell(effect.number, f"{effect.interval}, {effect.verdict}{within}", effect.is_different)


def conclusions(comparison: Comparison, analysis: Analysis) -> Iterator[str]:
    """Yields sentences about the F tests, the margins, and what these runs could and could not show."""
    tests = []
    for heading, fit in analysis.fits.items():
        design = f"{fit.blocks} seeds as blocks" if fit.blocks else "separate seeds"
        tests.append(f"{heading} {fit.test} ({design})")
    yield f"F tests of all losses: {'; '.join(tests)}."
    margins = [
        f"{percent(RELATIVE_MARGIN)} of the held-out error",
        *(f"{metric.margin} {heading}" for heading, metric in QUALITY.items() if metric.margin),
    ]
    yield f"The margins are {' and '.join(margins)}."
    if analysis.primary:
        yield (
            f"With a probability of {percent(POWER)}, these runs show a difference of "
            f"{percent(analysis.detectable)} of the held-out error."
        )
    side, share = comparison.compared[0].config.image_size, percent(trained_share(comparison))
    yield (
        f"These runs, at {side:,} pixels after {share} of the article's training, do not decide what other "
        "sizes, learning rates or longer training would show."
    )


def table(groups: Sequence[Group]) -> Table:
    """Returns the table of runs.

    There is a row for each run and, below several seeds of a group, a row with their mean and standard
    deviation. Columns without a value are omitted.
    """
    has_seeds = any(len(group.runs) > 1 for group in groups)
    numbers = {run.path: _numbers(run) for group in groups for run in group.runs}
    known = np.isfinite(np.stack(list(numbers.values()))).any(axis=0)
    forms = list(compress(COLUMNS.values(), known))
    rows = []
    for group in groups:
        seeds = np.stack([numbers[run.path][known] for run in group.runs])
        for index, run in enumerate(group.runs):
            folder = "" if run.name == run.loss.name else run.name
            seed = f"seed {run.config.seed}" if has_seeds else ""
            detail = ", ".join(filter(None, (folder, seed)))
            rows.append(Row([Cell(group.label, detail), *_cells(seeds[[index]], forms)]))
        if len(seeds) > 1:
            name = Cell(group.label, f"mean of {len(seeds)} seeds")
            rows.append(Row([name, *_cells(seeds, forms)], len(seeds)))
    return Table(["loss", *compress(COLUMNS, known)], rows)


def _numbers(run: Run) -> np.ndarray:
    """Returns a run's values in COLUMNS; nan if unknown. Held-out metrics are the last logged ones."""
    quality = [run.metrics.held_out.last(metric.column) for metric in QUALITY.values()]
    return np.array([run.iteration, *quality, run.images_per_second, run.seconds or math.nan, run.kwh])


def _cells(seeds: np.ndarray, forms: Sequence[Callable[[float], str]]) -> list[Cell]:
    """Returns the means over the seeds of values (seeds, columns)."""
    return [Cell(mean_text(values, form)) for values, form in zip(seeds.T, forms, strict=True)]


def mean_text(samples: ArrayLike, form: Callable[[float], str]) -> str:
    """Returns the mean of samples (n,) and, if they differ, their standard deviation.

    Returns a dash if a sample is not finite.
    """
    values = np.asarray(samples)
    if not np.isfinite(values).all():
        return NONE
    deviation = f" ± {form(values.std(ddof=1))}" if np.ptp(values) else ""
    return f"{form(values.mean())}{deviation}"


def hours(runs: Sequence[Run]) -> Iterator[str]:
    """Yields sentences that compare the article's 30 hours with the time of these runs."""
    devices = ", ".join(dict.fromkeys(as_text(run.description.device) or "an unknown device" for run in runs))
    these = "This run" if len(runs) == 1 else f"These {len(runs)} runs"
    iterations = f"{sum(run.iteration for run in runs):,} iterations"
    yield (
        f"The article's six runs of {ARTICLE_ITERATIONS:,} iterations took {ARTICLE_SECONDS // 3600} hours. "
        f"{these} trained for {duration(sum(run.seconds for run in runs))}, {iterations}, on {devices}."
    )
    rates = [run.images_per_second for run in runs if math.isfinite(run.images_per_second)]
    if not all(run.config.has_article_size and not run.has_own_model for run in runs):
        yield (
            "The speed is not projected to the article's runs, which had another model, --image-size, "
            "--latent or --batch-size."
        )
    elif rates:
        seconds = ARTICLE_IMAGES * float(np.mean([1 / rate for rate in rates]))
        ratio = speed_ratio(seconds, ARTICLE_SECONDS)
        yield f"At this speed the article's six runs would take {duration(seconds)} of training: {ratio}."


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns (name, value) of settings that differ between runs or from the defaults, and of the others."""
    described = {run.name: _settings(run) for run in runs}
    defaults = {flag(field.name): _shown(field.default) for field in fields(TrainConfig)}
    differing: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    for name in dict.fromkeys(chain.from_iterable(described.values())):
        having: dict[str, list[str]] = {}
        for run, values in described.items():
            having.setdefault(values.get(name, NOT_SET), []).append(run)
        text = next(iter(having))
        is_common = len(having) == 1 and text == defaults.get(name, text)
        if len(having) > 1:
            text = "; ".join(f"{value} ({', '.join(names)})" for value, names in having.items())
        (common if is_common else differing).append((name, text))
    return differing, common


def _settings(run: Run) -> dict[str, str]:
    """Returns all settings, hardware and versions of a run, except for NOT_LISTED, as text."""
    described, environment = run.description, run.description.environment
    values: dict[str, object] = {
        **{flag(name): value for name, value in vars(run.config).items()},
        **{f"images, {name.replace('_', ' ')}": value for name, value in vars(described.data).items()},
        "model": run.model,
        **{name: getattr(described, name) for name in ("device", "step", "loader", "compiled")},
        **{name: getattr(environment, name) for name in ("fastae", "commit", "python", "platform")},
        **environment.packages,
    }
    return {name: _shown(value) for name, value in values.items() if name not in NOT_LISTED}


def _shown(value: object) -> str:
    """Returns a setting's value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return as_text(value) or NOT_SET


def percent(share: float) -> str:
    """Returns a share in percent, with at most three digits: "1.2 %" for 0.0123.

    Only 0 itself is shown as 0.
    """
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return "less than 0.01 %"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:.{digits}f} %"
