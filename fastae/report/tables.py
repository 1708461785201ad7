"""The report's answer, tables and commands, as text: the page escapes it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.report.compare import Comparison
from fastae.report.quality import Reconstructions
from fastae.report.runs import Run, options
from fastae.sweep.plan import ARTICLE_IMAGES, ARTICLE_SECONDS, SweepConfig, read
from fastae.utils.console import duration

ARTICLE = TrainConfig()
"""Its conditions are the defaults."""

LONG_ENOUGH = 0.5
"""Of the images that the article trained on for each loss, below which nothing is concluded."""

THE_ARTICLES = ("iterations", "batch_size", "lr", "image_size", "latent")
"""Settings that the article states."""

NONE = "–"
HEAD = ("loss", "iterations", "held-out error", "PSNR", "SSIM", "images/s", "training", "energy")
FORMATS = (",.0f", ".2f", ".3f")
"""Of held-out error, PSNR, SSIM."""


@dataclass(frozen=True)
class TableRow:
    """cells: as HEAD. detail, notes: below the first, notes as warnings. mean: whether of several runs."""

    cells: tuple[str, ...]
    detail: str = ""
    notes: tuple[str, ...] = ()
    mean: bool = False


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
        start = comparison.compared[0].held_out.at(0)
        began = f" It was {start:,.0f} before the first iteration." if math.isfinite(start) else ""
        spread = "" if deviation is None else f" (± {deviation:,.0f} over {len(errors[best])} seeds)"
        headline = f"{best}: a held-out error of {lowest:,.0f} after {at:,} iterations"
        return headline, (f"That is {length}{spread}.{began}",)
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
            "Each loss was trained with one seed: fastae sweep --repeats would show what other seeds change."
        )
    else:
        chance = (
            f"Their difference is {comparison.difference:,.0f}, and the standard deviation over the seeds of "
            f"one loss is up to {deviation:,.0f}."
        )
    return headline, (ends, chance)


def table(
    runs: Sequence[Run], measured: Mapping[Path, Reconstructions], comparison: Comparison
) -> Iterator[TableRow]:
    """A row for each run, and below several seeds of a loss their mean with the standard deviation."""
    several = len(runs) > len({run.loss for run in runs})
    figures = {run.path: _figures(run, measured.get(run.path)) for run in runs}
    for place, run in enumerate(runs):
        detail = ", ".join([run.name] * (run.name != run.loss) + [f"seed {run.config.seed}"] * several)
        rate, energy = run.images_per_second, run.kwh
        yield TableRow(
            (
                run.loss,
                f"{run.iteration:,}",
                *map(_number, figures[run.path], FORMATS),
                NONE if rate is None else f"{rate:,.1f}",
                duration(run.seconds) if run.seconds else NONE,
                NONE if energy is None else f"{energy:.3g} kWh",
            ),
            detail,
            comparison.marks[run.path],
        )
        of_loss = [figures[each.path] for each in comparison.compared if each.loss == run.loss]
        if len(of_loss) > 1 and (place + 1 == len(runs) or runs[place + 1].loss != run.loss):
            with np.errstate(invalid="ignore"):  # of a PSNR without an error
                means, deviations = np.mean(of_loss, axis=0), np.std(of_loss, axis=0, ddof=1)
            cells = (
                f"{_number(mean, form)} ± {_number(deviation, form)}" if math.isfinite(mean) else NONE
                for mean, deviation, form in zip(means, deviations, FORMATS, strict=True)
            )
            yield TableRow((run.loss, "", *cells, "", "", ""), f"mean of {len(of_loss)}", mean=True)


def _figures(run: Run, measured: Reconstructions | None) -> tuple[float, float, float]:
    """The last held-out loss_index as it was logged, PSNR and SSIM; nan if not known."""
    logged, decibels = (run.metrics.held_out.values[name] for name in ("loss_index", "psnr"))
    last, psnr = (float(each[-1]) if len(each) else math.nan for each in (logged, decibels))
    return (last, measured.psnr, measured.ssim) if measured else (last, psnr, math.nan)


def hours(runs: Sequence[Run]) -> Iterator[str]:
    """The article's 30 hours and these runs' time, in sentences."""
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
        yield f"No time is projected for the article's work, since the speed is that of {', '.join(other)}."
    elif rates:
        seconds = ARTICLE_IMAGES * float(np.mean([1 / rate for rate in rates]))
        factor = ARTICLE_SECONDS / seconds
        times = f"{factor:,.3g} times less" if factor >= 1 else f"{1 / factor:,.3g} times more"
        yield f"At their speed the article's six runs would take {duration(seconds)} of training: {times}."


def settings(runs: Sequence[Run]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """(name, value) of what differs, between the runs or from what the article states, and of the rest."""
    described = {run.name: dict(_settings(run)) for run in runs}
    differing, common = [], []
    for name in dict.fromkeys(name for each in described.values() for name in each):
        having: dict[str, list[str]] = {}
        for run, values in described.items():
            having.setdefault(values.get(name) or "not known", []).append(run)
        if len(having) > 1:
            differing.append((name, "; ".join(f"{value} ({', '.join(of)})" for value, of in having.items())))
        else:
            (value,) = having
            stated = next((each for each in THE_ARTICLES if flag(each) == name), None)
            if stated and value != str(getattr(ARTICLE, stated)):
                differing.append((name, f"{value} (the article: {getattr(ARTICLE, stated)})"))
            else:
                common.append((name, value))
    return tuple(differing), tuple(common)


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Of a run, all that may matter but its loss and seed, as text."""
    for name in ("train", "held_out", "evaluated_on"):
        yield f"images, {name.replace('_', ' ')}", run.text("data", name)
    for path in (("data", "folder"), ("data", "split"), ("device",), ("step",), ("loader",), ("compiled",)):
        yield path[-1], run.text(*path)
    for field in fields(TrainConfig):
        if field.name not in ("loss", "seed", "out", "data"):
            yield flag(field.name), str(getattr(run.config, field.name))
    for name in ("fastae", "commit", "python", "platform"):
        yield name, run.text("environment", name)
    packages = run.description.get("environment", {})
    packages = packages.get("packages") if isinstance(packages, dict) else None
    for name in packages if isinstance(packages, dict) else ():
        yield name, run.text("environment", "packages", name)


def commands(runs: Sequence[Run], report: Sequence[str]) -> Iterator[str]:
    """What a shell needs to repeat the runs, whole sweeps by one command, and to make this report."""
    left = list(runs)
    for folder in dict.fromkeys(run.path.parent for run in runs):
        if command := _sweep_command(folder, [run for run in runs if run.path.parent == folder]):
            yield command
            left = [run for run in left if run.path.parent != folder]
    yield from (run.command for run in left)
    yield shlex.join(("fastae", "report", *report))


def _sweep_command(folder: Path, runs: Sequence[Run]) -> str | None:
    """None if these are not the runs of a sweep."""
    try:
        entries = read(folder).entries
        losses = tuple(loss for loss in LOSSES if any(entry.loss == loss for entry in entries))
        same_init = len(losses) > 1 and entries[0].seed == entries[1].seed
        first = entries[0].seed - (0 if same_init else list(LOSSES).index(losses[0]))
        train = replace(runs[0].config, seed=first)
        sweep = SweepConfig(train, losses, len(entries) // len(losses), same_init)
    except (FastaeError, IndexError):
        return None
    planned, found = ({each.name: each.seed for each in some} for some in (sweep.runs(), entries))
    if planned != found or {run.path.name for run in runs} != set(found):
        return None
    chosen = [] if len(losses) == len(LOSSES) else ["--losses", ",".join(losses)]
    chosen += ["--repeats", str(sweep.repeats)] if sweep.repeats > 1 else []
    chosen += ["--same-init"] if same_init else []
    return shlex.join(("fastae", "sweep", *chosen, *options(train, skip=["loss"])))


def percent(share: float) -> str:
    """0.0123 -> "1.2 %"; three digits at most, and never a rounded 0 for what is not 0."""
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return "less than 0.01 %"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:.{digits}f} %"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else NONE
