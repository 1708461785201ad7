"""The report's answer, tables and commands as text; the page escapes it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.report.compare import Comparison
from fastae.report.quality import Measurement
from fastae.report.runs import Run, options
from fastae.runs.sweep_folder import ARTICLE_IMAGES, ARTICLE_SECONDS, SweepConfig, SweepFolder
from fastae.utils.console import duration
from fastae.utils.json import convert, nested

ARTICLE = TrainConfig()
"""Its conditions are the defaults."""

LONG_ENOUGH = 0.5
"""Share of the images that the article trained on for each loss, below which nothing is concluded."""

NONE = "–"
HEAD = ("loss", "iterations", "held-out error", "PSNR", "SSIM", "images/s", "training", "energy")
FORMATS = (",.0f", ".2f", ".3f")
"""For held-out error, PSNR and SSIM."""


@dataclass(frozen=True)
class TableRow:
    """cells: as HEAD. detail, notes: below the first cell, notes as warnings. is_mean: of several runs."""

    cells: tuple[str, ...]
    detail: str = ""
    notes: Sequence[str] = ()
    is_mean: bool = False


def answer(comparison: Comparison) -> tuple[str, tuple[str, ...]]:
    """One headline, and at most two sentences, from the numbers."""
    at, errors = comparison.at, comparison.errors
    if not at:
        return "Nothing to compare yet", ("No run was evaluated after its first iteration.",)
    best, worst = comparison.best, comparison.worst
    lowest, highest = errors[best].mean(), errors[worst].mean()
    share = at * comparison.compared[0].config.batch_size * len(LOSSES) / ARTICLE_IMAGES
    length = f"{percent(share)} of the article's training"
    deviation = comparison.deviation
    if len(errors) == 1:
        seeds = "" if deviation is None else f" (± {deviation:,.0f} over {len(errors[best])} seeds)"
        headline = f"{best}: a held-out error of {lowest:,.0f}{seeds} after {at:,} iterations"
        start = comparison.compared[0].held_out.at(0)
        began = f" The error was {start:,.0f} before the first iteration." if math.isfinite(start) else ""
        return headline, (f"That is {length}.{began}",)
    apart = percent(comparison.difference / highest if highest else 0.0)
    if share < LONG_ENOUGH:
        headline = f"Too short to tell: {length}"
    else:
        headline = f"The {len(errors)} losses end within {apart} of each other"
    ends = (
        f"At iteration {at:,} the held-out error is lowest for {best}, {lowest:,.0f}, and highest for "
        f"{worst}, {highest:,.0f}, {apart} apart."
    )
    if deviation is None:
        chance = (
            "Each loss was trained with one seed; fastae sweep --repeats shows how much other seeds change."
        )
    else:
        chance = (
            f"Their difference is {comparison.difference:,.0f}, and the standard deviation over the seeds of "
            f"one loss is up to {deviation:,.0f}."
        )
    return headline, (ends, chance)


def table(
    runs: Sequence[Run], measured: Mapping[Path, Measurement], comparison: Comparison
) -> tuple[list[str], list[TableRow]]:
    """Header and rows, without the columns in which nothing is known."""
    rows = list(_rows(runs, measured, comparison))
    known = [any(row.cells[place] not in ("", NONE) for row in rows) for place in range(len(HEAD))]
    rows = [replace(row, cells=tuple(compress(row.cells, known))) for row in rows]
    return list(compress(HEAD, known)), rows


def _rows(
    runs: Sequence[Run], measured: Mapping[Path, Measurement], comparison: Comparison
) -> Iterator[TableRow]:
    """One per run, and below several seeds of a loss their mean and standard deviation."""
    has_seeds = len(runs) > len({run.loss for run in runs})
    figures = {run.path: _figures(run, measured.get(run.path)) for run in runs}
    for loss in dict.fromkeys(run.loss for run in runs):
        of_loss = [run for run in runs if run.loss == loss]
        for run in of_loss:
            rate, energy = run.images_per_second, run.kwh
            yield TableRow(
                (
                    loss,
                    f"{run.iteration:,}",
                    *map(_number, figures[run.path], FORMATS),
                    NONE if rate is None else f"{rate:,.1f}",
                    duration(run.seconds) if run.seconds else NONE,
                    NONE if energy is None else f"{energy:.3g} kWh",
                ),
                ", ".join([run.name] * (run.name != loss) + [f"seed {run.config.seed}"] * has_seeds),
                comparison.marks[run.path],
            )
        seeds = [figures[run.path] for run in comparison.compared if run.loss == loss]
        if len(seeds) > 1:
            with np.errstate(invalid="ignore"):  # the PSNR of an image without an error is infinite
                means, deviations = np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=1)
            cells = (
                f"{_number(mean, form)} ± {_number(deviation, form)}" if math.isfinite(mean) else NONE
                for mean, deviation, form in zip(means, deviations, FORMATS, strict=True)
            )
            yield TableRow((loss, "", *cells, "", "", ""), f"mean of {len(seeds)}", is_mean=True)


def hours(runs: Sequence[Run]) -> Iterator[str]:
    """The article's 30 hours beside these runs' time, in sentences."""
    devices = ", ".join(dict.fromkeys(run.text("device") or "an unknown device" for run in runs))
    these = "This run" if len(runs) == 1 else f"These {len(runs)} runs"
    spent = f"{duration(sum(run.seconds for run in runs))}, {sum(run.iteration for run in runs):,} iterations"
    yield (
        f"The article's six runs of {ARTICLE.iterations:,} iterations took {ARTICLE_SECONDS // 3600} hours. "
        f"{these} trained for {spent}, on {devices}."
    )
    other = [
        f"{flag(name)} {', '.join(map(str, values))}"
        for name in ("image_size", "latent", "batch_size")
        if (values := sorted({getattr(run.config, name) for run in runs})) != [getattr(ARTICLE, name)]
    ]
    rates = [rate for run in runs if (rate := run.images_per_second)]
    if other:
        yield f"No projection to the article's work: this is the speed of {', '.join(other)}."
    elif rates:
        seconds = ARTICLE_IMAGES * float(np.mean([1 / rate for rate in rates]))
        factor = ARTICLE_SECONDS / seconds
        times = f"{factor:,.3g} times less" if factor >= 1 else f"{1 / factor:,.3g} times more"
        yield f"At this speed the article's six runs would take {duration(seconds)} of training: {times}."


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, value) of what differs between the runs or from the defaults, and of everything else."""
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
    """Everything that may matter about a run but its loss and seed."""
    for field in fields(TrainConfig):
        if field.name not in ("loss", "seed", "out", "data"):
            yield flag(field.name), getattr(run.config, field.name)
    for name in ("folder", "split", "train", "held_out", "evaluated_on"):
        yield f"images, {name.replace('_', ' ')}", run.text("data", name)
    for name in ("device", "step", "loader", "compiled"):
        yield name, run.text(name)
    for name in ("fastae", "commit", "python", "platform"):
        yield name, run.text("environment", name)
    packages = nested(run.description, "environment", "packages")
    for name in packages if isinstance(packages, dict) else ():
        yield name, run.text("environment", "packages", name)


def _shown(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value in (None, "") else str(value)


def commands(runs: Sequence[Run], report: Sequence[str]) -> Iterator[str]:
    """What a shell needs to repeat the runs, whole sweeps by one command, and to make this report.

    report: the arguments of `fastae report`.
    """
    for folder in dict.fromkeys(run.path.parent for run in runs):
        beside = [run for run in runs if run.path.parent == folder]
        if sweep := _sweep_of(folder, beside):
            chosen = [] if len(sweep.losses) == len(LOSSES) else ["--losses", ",".join(sweep.losses)]
            chosen += ["--repeats", str(sweep.repeats)] if sweep.repeats > 1 else []
            chosen += ["--same-init"] if sweep.same_init else []
            yield shlex.join(("fastae", "sweep", *chosen, *options(sweep.train, skip=["loss"])))
        else:
            yield from (shlex.join(("fastae", "train", *options(run.config))) for run in beside)
    yield shlex.join(("fastae", "report", *report))


def _sweep_of(folder: Path, runs: Sequence[Run]) -> SweepConfig | None:
    """The sweep in a folder, if these are its runs, all of them."""
    try:
        plan = SweepFolder(folder).read().plan
        own = {name: plan.get(name) for name in ("losses", "repeats", "same_init")}
        train = runs[0].config.as_dict() | {"seed": plan.get("seed")}
        sweep: SweepConfig = convert({"train": train, **own}, SweepConfig)
    except (FastaeError, ValueError):
        return None
    if len(sweep.losses) * sweep.repeats != len(runs):
        return None
    found = {(run.path.name, run.loss, run.config.seed) for run in runs}
    return sweep if found == {(run.name, run.loss, run.seed) for run in sweep.runs()} else None


def percent(share: float) -> str:
    """0.0123 -> "1.2 %": three digits at most, and never a rounded 0 for what is not 0."""
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return "less than 0.01 %"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:.{digits}f} %"


def _figures(run: Run, measured: Measurement | None) -> tuple[float, float, float]:
    """The last held-out loss_index that was logged, PSNR and SSIM; nan if not known."""
    logged = run.metrics.held_out.values
    last, psnr = (
        float(logged[name][-1]) if len(logged[name]) else math.nan for name in ("loss_index", "psnr")
    )
    return (last, measured.psnr, measured.ssim) if measured else (last, psnr, math.nan)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else NONE
