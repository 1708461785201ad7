"""The report's answer and tables as text, which the page escapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from fastae.article import ARTICLE_IMAGES, ARTICLE_SECONDS, speed_ratio
from fastae.config import TrainConfig, flag
from fastae.losses import LOSSES
from fastae.report.compare import Comparison
from fastae.report.differences import CONFIDENCE, ELEMENT, Difference
from fastae.report.groups import Group
from fastae.report.quality import Measurement
from fastae.report.runs import Run, as_text
from fastae.utils.console import duration

ARTICLE = TrainConfig()
"""The article's settings, which are the defaults."""

LONG_ENOUGH = 0.5
"""The share of the article's training below which the headline concludes nothing."""

NONE = "–"
COLUMNS: dict[str, Callable[[float], str]] = {
    "iterations": "{:,.0f}".format,
    "held-out error": "{:,.0f}".format,
    "PSNR": "{:.2f}".format,
    "SSIM": "{:.3f}".format,
    "images/s": "{:,.1f}".format,
    "training": duration,
    "energy": "{:.3g} kWh".format,
}


@dataclass(frozen=True)
class TableRow:
    """A row of the table of runs."""

    cells: tuple[str, ...]
    """The cells, in the order of the table's head."""

    detail: str = ""
    """The small text below the first cell."""

    is_mean: bool = False
    """Whether the row is the mean of several runs."""


@dataclass(frozen=True)
class DifferenceRow:
    """A row of the table of differences."""

    name: str

    samples: str
    """The sizes of the samples, in words."""

    cells: tuple[Difference | None, ...]
    """The cells, in the order of the table's head; None if there is no interval."""


def answer(
    comparison: Comparison, label: str, found: Mapping[str, Mapping[str, Difference]]
) -> tuple[str, tuple[str, ...]]:
    """Makes a headline and at most three sentences from the numbers.

    Args:
        comparison: the comparison of the losses.
        label: the label of the compared runs, which is used if all have the same loss.
        found: the result of `differences` for the comparison.
    """
    at, errors = comparison.at, comparison.errors
    if not at:
        return "Nothing to compare yet", (
            "The runs share no iteration, after the first, at which all of them were evaluated.",
        )
    ranked = list(errors)
    best, worst = ranked[0], ranked[-1]
    lowest, highest = errors[best].mean(), errors[worst].mean()
    length = trained_share(comparison)
    deviation = comparison.deviation
    if len(errors) == 1:
        seeds = "" if deviation is None else f" (± {deviation:,.0f} over {len(errors[best])} seeds)"
        headline = f"{label}: a held-out error of {lowest:,.0f}{seeds} after {at:,} iterations"
        start = comparison.compared[0].held_out.at(0)
        began = f" The error was {start:,.0f} before the first iteration." if math.isfinite(start) else ""
        return headline, (f"That is {percent(length)} of the article's training.{began}",)
    apart = percent(comparison.difference / highest if highest else 0.0)
    if length < LONG_ENOUGH:
        headline = f"Too short to tell: {percent(length)} of the article's training"
    else:
        headline = f"The {len(errors)} losses end within {apart} of each other"
    sentences = [
        f"At iteration {at:,} the held-out error is lowest for {best}, {lowest:,.0f}, and highest for "
        f"{worst}, {highest:,.0f}, {apart} apart."
    ]
    if deviation is None:
        sentences.append(
            "Each loss was trained with one seed; fastae sweep --repeats shows the effect of other seeds."
        )
    else:
        sentences.append(
            f"Their difference is {comparison.difference:,.0f}, and the standard deviation over the seeds of "
            f"one loss is up to {deviation:,.0f}."
        )
    if element := found.get(ELEMENT, {}).get("held-out error"):
        sentences.append(
            f"Squared error minus cross entropy is {element.number} ({percent(CONFIDENCE)} interval: "
            f"{element.interval}; {element.samples})."
        )
    return headline, tuple(sentences)


def trained_share(comparison: Comparison) -> float:
    """The share of the article's training that each compared run has done, in images."""
    images = comparison.at * comparison.compared[0].config.batch_size
    return images * len(LOSSES) / ARTICLE_IMAGES


def difference_table(
    found: Mapping[str, Mapping[str, Difference]],
) -> tuple[list[str], list[DifferenceRow]]:
    """The head and the rows of the table of differences."""
    head = list(dict.fromkeys(metric for row in found.values() for metric in row))
    rows = [
        DifferenceRow(name, next(iter(row.values())).samples, tuple(map(row.get, head)))
        for name, row in found.items()
    ]
    return ["difference", *head], rows


def undecided(comparison: Comparison, found: Mapping[str, Mapping[str, Difference]]) -> tuple[str, ...]:
    """Sentences about what the data do not decide."""
    open_ones = {
        name: [metric for metric, each in row.items() if not each.is_decided] for name, row in found.items()
    }
    listed = "; ".join(f"{name} ({', '.join(names)})" for name, names in open_ones.items() if names)
    count = sum(map(len, found.values()))
    sizes = ", ".join(f"{size:,}" for size in sorted({run.config.image_size for run in comparison.compared}))
    return (
        f"These seeds do not decide, since the interval includes 0: {listed}."
        if listed
        else "Every interval excludes 0.",
        f"Of {count} intervals about {(1 - CONFIDENCE) * count:.1g} would exclude 0 by chance alone.",
        f"Nor do these runs, at {sizes} pixels after {percent(trained_share(comparison))} of the article's "
        "training, decide what other sizes, learning rates or longer training would show.",
    )


def table(groups: Sequence[Group], measured: Mapping[Path, Measurement]) -> tuple[list[str], list[TableRow]]:
    """The head and the rows of the table of runs.

    There is a row for each run and, below several seeds of a group, a row with their mean and standard
    deviation. Columns without a value are omitted.
    """
    runs = [run for group in groups for run in group.runs]
    has_seeds = any(len(group.runs) > 1 for group in groups)
    numbers = {run.path: _numbers(run, measured.get(run.path)) for run in runs}
    known = np.isfinite(np.array(list(numbers.values()))).any(axis=0)
    rows = []
    for group in groups:
        for run in group.runs:
            names = [run.name] * (run.name != group.loss) + [f"seed {run.config.seed}"] * has_seeds
            rows.append(TableRow((group.label, *_cells(numbers[run.path], known)), ", ".join(names)))
        if len(group.runs) > 1:
            seeds = [numbers[run.path] for run in group.runs]
            with np.errstate(invalid="ignore"):  # the PSNR is infinite if the error is zero
                means, deviations = np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=1)
            both = zip(_cells(means, known), _cells(deviations, known), strict=True)
            cells = (
                mean if deviation in (NONE, "0") else f"{mean} ± {deviation}" for mean, deviation in both
            )
            rows.append(TableRow((group.label, *cells), f"mean of {len(seeds)} seeds", is_mean=True))
    return ["loss", *compress(COLUMNS, known)], rows


def _numbers(run: Run, measured: Measurement | None) -> list[float]:
    """A run's values in COLUMNS; nan if unknown. loss_index is the last logged one."""
    logged = run.metrics.held_out.values
    last, psnr = (
        float(logged[name][-1]) if len(logged[name]) else math.nan for name in ("loss_index", "psnr")
    )
    quality = (measured.psnr, measured.ssim) if measured else (psnr, math.nan)
    return [run.iteration, last, *quality, run.images_per_second, run.seconds or math.nan, run.kwh]


def _cells(numbers: Sequence[float], known: Sequence[bool]) -> list[str]:
    """The cells of the known columns."""
    cells = (form(n) if math.isfinite(n) else NONE for n, form in zip(numbers, COLUMNS.values(), strict=True))
    return list(compress(cells, known))


def hours(runs: Sequence[Run]) -> Iterator[str]:
    """Yields sentences that compare the article's 30 hours with the time of these runs."""
    devices = ", ".join(dict.fromkeys(as_text(run.description.device) or "an unknown device" for run in runs))
    these = "This run" if len(runs) == 1 else f"These {len(runs)} runs"
    spent = f"{sum(run.iteration for run in runs):,} iterations"
    if any(run.took_turns for run in runs):
        spent += ", taking turns, so that no run has a speed of its own"
    else:
        spent = f"{duration(sum(run.seconds for run in runs))}, {spent}"
    yield (
        f"The article's six runs of {ARTICLE.iterations:,} iterations took {ARTICLE_SECONDS // 3600} hours. "
        f"{these} trained for {spent}, on {devices}."
    )
    other = [
        f"{flag(name)} {', '.join(map(str, values))}"
        for name in ("image_size", "latent", "batch_size")
        if (values := sorted({getattr(run.config, name) for run in runs})) != [getattr(ARTICLE, name)]
    ]
    rates = [run.images_per_second for run in runs if math.isfinite(run.images_per_second)]
    if other:
        yield f"The speed is not projected to the article's runs: it was measured with {', '.join(other)}."
    elif rates:
        seconds = ARTICLE_IMAGES * float(np.mean([1 / rate for rate in rates]))
        ratio = speed_ratio(seconds, ARTICLE_SECONDS)
        yield f"At this speed the article's six runs would take {duration(seconds)} of training: {ratio}."


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, value) of settings that differ between the runs or from the defaults, and of all others."""
    defaults = {flag(field.name): field.default for field in fields(TrainConfig)}
    described = {run.name: dict(_settings(run)) for run in runs}
    differing, common = [], []
    for name in dict.fromkeys(name for each in described.values() for name in each):
        having: dict[Any, list[str]] = {}
        for run, values in described.items():
            having.setdefault(values.get(name), []).append(run)
        value = next(iter(having))
        if len(having) > 1:
            differing.append(
                (name, "; ".join(f"{_shown(each)} ({', '.join(of)})" for each, of in having.items()))
            )
        elif name in defaults and value != defaults[name]:
            default = "" if defaults[name] is None else f" (default: {_shown(defaults[name])})"
            differing.append((name, f"{_shown(value)}{default}"))
        else:
            common.append((name, _shown(value)))
    return differing, common


def _settings(run: Run) -> Iterator[tuple[str, Any]]:
    """Yields all settings, hardware and versions of a run except its loss and seed."""
    described = run.description
    for field in fields(TrainConfig):
        if field.name not in ("loss", "seed", "out", "data"):
            yield flag(field.name), getattr(run.config, field.name)
    for name in ("folder", "split", "train", "held_out", "evaluated_on"):
        yield f"images, {name.replace('_', ' ')}", as_text(getattr(described.data, name))
    for name in ("device", "step", "loader", "compiled"):
        yield name, as_text(getattr(described, name))
    for name in ("fastae", "commit", "python", "platform"):
        yield name, as_text(getattr(described.environment, name))
    for name, version in described.environment.packages.items():
        yield name, as_text(version)


def _shown(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value in (None, "") else str(value)


def percent(share: float) -> str:
    """0.0123 -> "1.2 %", with three digits at most. Only 0 itself is shown as 0."""
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return "less than 0.01 %"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:.{digits}f} %"
