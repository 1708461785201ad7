"""The report's tables, as texts in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastae.config import flag
from fastae.console import duration
from fastae.report.compare import SAME_SPEED, SAME_WORK, Mixture
from fastae.report.curves import smooth
from fastae.report.figures import name_of
from fastae.report.gather import Run
from fastae.report.hours import ARTICLE
from fastae.report.quality import Quality
from fastae.report.words import percent

NONE = "–"

FORMATS = (",.0f", ".2f", ".3f", ",.0f", ",.0f")
"""Of held-out error, PSNR, SSIM, best held-out error, train error."""

BEST = 3
"""The place of the best held-out error among those."""

THE_ARTICLES = ("iterations", "batch_size", "lr", "image_size", "latent")
"""Settings that the article states: the defaults."""


@dataclass(frozen=True)
class Line:
    """cells: the first is the row's name. detail, notes: below it in small type, notes as warnings.

    kind: "", "mean" or "best".
    """

    cells: tuple[str, ...]
    detail: str = ""
    notes: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    lines: tuple[Line, ...]


def quality_table(runs: Sequence[Run], quality: Mapping[Any, Quality], mixture: Mixture) -> Table:
    """A line for each run, and below the several of a loss their mean, with the standard deviation.

    Of held-out images: loss_index at the end, PSNR and SSIM of the last checkpoint (means over the images),
    and the lowest loss_index. train: loss_index of the last batches, smoothed as in the figure. `quality` is
    by the run's folder.
    """
    head = ("loss", "held-out", "PSNR [dB]", "SSIM", "best held-out", "train", "iterations")
    compared = {run.path for run in mixture.compared}
    finals = {run.path: _last(run.held_out.values) for run in runs if run.path in compared}
    lowest = min(finals.values(), default=math.nan)
    several = len({run.config.seed for run in runs}) > 1
    lines: list[Line] = []
    for place, run in enumerate(runs):
        measured = quality.get(run.path)
        figures = _figures(run, measured)
        notes = mixture.marks[run.path]
        if measured and measured.iteration < run.iteration:
            notes = (*notes, f"PSNR and SSIM of iteration {measured.iteration:,}, its last checkpoint")
        best = run.held_out.finite()
        at = f" at {int(best.steps[best.values.argmin()]):,}" if len(best) else ""
        lines.append(
            Line(
                (name_of(run.loss), *_written(figures, at), f"{run.iteration:,}"),
                f"seed {run.config.seed}" if several else "",
                notes,
                "best" if len(finals) > 1 and finals.get(run.path) == lowest else "",
            )
        )
        last_of_loss = place + 1 == len(runs) or runs[place + 1].loss != run.loss
        of_loss = [each for each in runs if each.loss == run.loss and each.path in compared]
        if last_of_loss and len(of_loss) > 1:
            all_figures = np.array([_figures(each, quality.get(each.path)) for each in of_loss])
            lines.append(_mean(run.loss, all_figures))
    return Table(head, tuple(lines))


def cost_table(runs: Sequence[Run]) -> Table:
    """What each run took: of its steps as the loop measured them, of the whole as its sampler did."""
    head = ("run", "images/s", "step p50", "step p95", "data wait", "wall time", "GPU-hours", "energy")
    lines = []
    for run in runs:
        speed = run.speed()
        cells = (
            run.name,
            _or_none(speed.images_per_second, lambda value: f"{value:,.1f}"),
            _or_none(speed.step_ms_p50, lambda value: f"{value:,.1f} ms"),
            _or_none(speed.step_ms_p95, lambda value: f"{value:,.1f} ms"),
            _or_none(speed.data_wait, percent),
            duration(run.wall_seconds),
            f"{run.ranks * run.wall_seconds / 3600:.3g}" if run.on_gpu else "none: CPU",
            _or_none(run.kwh, lambda value: f"{value:.3g} kWh"),
        )
        lines.append(Line(cells, "resumed" if run.resumed else ""))
    return Table(head, tuple(lines))


def settings_table(runs: Sequence[Run]) -> Table:
    """Settings, data, hardware and versions: what all share, or each value with the runs that have it."""
    reads: dict[str, Callable[[Run], str]] = {
        "data": lambda run: run.told("data", "folder"),
        "images": lambda run: (
            f"{run.told('data', 'train')} to train on, {run.told('data', 'held_out')} held out "
            f"({run.told('data', 'split')}), {run.told('data', 'evaluated_on')} of them evaluated on"
        ),
        "device": lambda run: run.told("device"),
        "step": lambda run: run.told("step"),
        "loader, as chosen": lambda run: run.told("loader"),
    }
    for name in ("iterations", "minutes", *SAME_WORK, *SAME_SPEED, "log_every", "eval_every"):
        reads[flag(name)] = lambda run, name=name: _setting(name, getattr(run.config, name))  # type: ignore[misc]
    reads |= {
        "fastae": lambda run: (
            f"{run.told('environment', 'fastae')}, commit {run.told('environment', 'commit') or 'not known'}"
        ),
        "Python": lambda run: run.told("environment", "python"),
        "platform": lambda run: run.told("environment", "platform"),
    }
    packages: dict[str, None] = {}
    for run in runs:
        environment = run.description.get("environment")
        told = environment.get("packages") if isinstance(environment, Mapping) else None
        packages |= dict.fromkeys(map(str, told)) if isinstance(told, Mapping) else {}
    for package in packages:
        reads[package] = lambda run, package=package: run.told("environment", "packages", package)  # type: ignore[misc]
    return Table(("", ""), tuple(Line((what, _shared(runs, read))) for what, read in reads.items()))


def _figures(run: Run, quality: Quality | None) -> tuple[float, ...]:
    """In the order of the columns, all but the iterations; nan where not known."""
    best = run.held_out.finite().values
    return (
        _last(run.held_out.values),
        float(quality.psnr.mean()) if quality else math.nan,
        float(quality.ssim.mean()) if quality else math.nan,
        float(best.min()) if len(best) else math.nan,
        _last(smooth(run.train.values)),
    )


def _written(figures: Sequence[float], best_at: str) -> list[str]:
    cells = [_number(figure, form) for figure, form in zip(figures, FORMATS, strict=True)]
    cells[BEST] += best_at
    return cells


def _mean(loss: str, figures: np.ndarray) -> Line:
    """Of runs that differ by their seeds alone: (runs, 5)."""
    means, deviations = figures.mean(axis=0), figures.std(axis=0, ddof=1)
    cells = (
        f"{_number(mean, form)} ± {_number(deviation, form)}" if math.isfinite(mean) else NONE
        for mean, deviation, form in zip(means, deviations, FORMATS, strict=True)
    )
    return Line((name_of(loss), *cells, ""), f"mean of {len(figures)}", kind="mean")


def _last(values: np.ndarray) -> float:
    return float(values[-1]) if len(values) else math.nan


def _number(value: float, form: str = ",.0f") -> str:
    return format(value, form) if math.isfinite(value) else NONE


def _or_none(value: float | None, written: Callable[[float], str]) -> str:
    return NONE if value is None else written(value)


def _setting(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "default"
    told = f"{value:,}" if isinstance(value, int) else str(value)
    article = getattr(ARTICLE, name)
    return told if name not in THE_ARTICLES or value == article else f"{told} (the article: {article:,})"


def _shared(runs: Sequence[Run], read: Callable[[Run], str]) -> str:
    having: dict[str, list[str]] = {}
    for run in runs:
        having.setdefault(read(run) or "not known", []).append(run.name)
    if len(having) == 1:
        return next(iter(having))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in having.items())
