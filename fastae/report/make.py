"""`fastae report`: makes report.html and its figures from run folders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastae.device.apply import use_device
from fastae.device.choose import choose_device
from fastae.errors import FastaeError
from fastae.report.commands import commands
from fastae.report.compare import Comparison, compare
from fastae.report.differences import differences
from fastae.report.figures import Curve, draw_curves, draw_strips, short
from fastae.report.gallery import make_gallery
from fastae.report.groups import Group, group_seeds
from fastae.report.page import render
from fastae.report.runs import Run, Series, find_runs
from fastae.report.tables import answer, difference_table, hours, settings, table, undecided
from fastae.utils.console import log, printable, track
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write
from fastae.utils.paths import expand_home

PAGE = "report.html"
PICTURES = "reconstructions.png"


@dataclass(frozen=True)
class Chart:
    """A figure with curves."""

    name: str
    """The name of its file, without a suffix."""

    title: str

    alt: str
    """A description for readers who cannot see it."""

    svg: bytes


def make_report(folders: Sequence[Path], out: Path | None = None, data: str | None = None) -> Path:
    """Writes the page and its figures; returns the page's path.

    Args:
        folders: run folders, or folders with runs one or two levels below.
        out: the page. Default: report.html in the folder, or in the common parent of several folders. The
            figures are written into a folder beside the page that has the page's name without the suffix.
        data: the folder of the runs' images, as for `make_gallery`.

    Raises:
        FastaeError: an argument is wrong, a file cannot be written, or the page would replace one that has
            reconstructions by one without.
    """
    arguments = [[str(folder)] for folder in folders]
    arguments += [["--out", str(out)]] if out else []
    arguments += [["--data", data]] if data else []
    folders = list(map(expand_home, folders))
    out = _choose_out(folders, expand_home(out) if out else None)
    runs, warnings = find_runs(folders)
    comparison, groups = compare(runs), group_seeds(runs)
    groups.sort(key=lambda group: group.runs[0] not in comparison.compared)
    gallery, missing = make_gallery(track(groups, "reconstructing"), use_device(choose_device("auto")), data)
    if not gallery and out.exists() and (out.with_suffix("") / PICTURES).exists():
        raise FastaeError(
            f"{str(out)!r} is kept, since a new page would have {missing[0]}; or set another --out"
        )
    warnings = [*warnings, *comparison.warnings, *missing]
    content = _content(runs, groups, comparison)
    page = render(**content, gallery=gallery, warnings=warnings, commands=commands(runs, arguments))
    figures = {f"{chart.name}.svg": chart.svg for chart in content["charts"]}
    if gallery:
        figures[PICTURES] = draw_strips([gallery.row(each) for each in chain(*gallery.groups.values())])
    _write(out, page, figures)
    for warning in warnings:
        log(f"warning   {printable(warning)}", "yellow")
    log(f"answer    {content['headline']}", "bold")
    log(f"report    {out}, and its figures in {out.with_suffix('')}", "bold")
    return out


def _content(runs: Sequence[Run], groups: Sequence[Group], comparison: Comparison) -> dict[str, Any]:
    """What the page shows of the runs' numbers and settings."""
    found = differences(comparison)
    headline, sentences = answer(comparison, groups[0].label, found)
    differing, common = settings(runs)
    return {
        "is_single": len(runs) == 1,
        "headline": headline,
        "sentences": sentences,
        "made": time.strftime("%-d %B %Y, %H:%M"),
        "version": __version__,
        "charts": draw_charts(groups),
        "numbers": table(groups),
        "differences": difference_table(found),
        "undecided": undecided(comparison, found) if found else (),
        "hours": hours(runs),
        "differing": differing,
        "common": common,
    }


def draw_charts(groups: Sequence[Group]) -> list[Chart]:
    """The charts that have data.

    They are the article's first figure (training batches), held-out images, and the second half of the
    latter, which shows differences better.
    """
    train = _curves(groups, lambda run: run.train, is_smoothed=True)
    held_out = _curves(groups, lambda run: run.held_out)
    half = max((int(curve.steps[-1]) for curve in held_out if len(curve.steps)), default=0) // 2
    later = [curve for curve in (each.since(half) for each in held_out) if len(curve.steps) > 2]
    charts = [
        ("train", f"Training batches{_smoothed(train)}", train),
        ("held-out", "Held-out images", held_out),
        ("held-out-later", f"Held-out images from iteration {half:,} on", later if len(later) > 1 else []),
    ]
    return [_chart(name, title, curves) for name, title, curves in charts if curves]


def _curves(
    groups: Sequence[Group], series: Callable[[Run], Series], is_smoothed: bool = False
) -> list[Curve]:
    """The curve of each group, over the seeds that have logged finite values."""
    return [
        Curve(group.loss, group.label, seeds, is_smoothed)
        for group in groups
        if (seeds := tuple(each for each in map(series, group.runs) if len(each.finite())))
    ]


def _chart(name: str, title: str, curves: Sequence[Curve]) -> Chart:
    ends = ", ".join(f"{curve.label} {_end(curve)}" for curve in curves)
    alt = f"{title}: squared error × 10⁷ by iteration. At the end: {ends}."
    return Chart(name, title, alt, draw_curves(curves))


def _end(curve: Curve) -> str:
    """The last finite value of the mean over the seeds, as text."""
    drawn = curve.drawn.mean(axis=0)
    finite = drawn[np.isfinite(drawn)]
    return short(float(finite[-1])) if len(finite) else "unknown"


def _smoothed(curves: Sequence[Curve]) -> str:
    """Words on the weights by which curves are smoothed, such as ", smoothed by 0.17 to 0.95"."""
    weights = [curve.smoothing for curve in curves]
    if not any(weights):
        return ""
    ends = dict.fromkeys(f"{weight:.2g}" for weight in (min(weights), max(weights)))
    return f", smoothed by {' to '.join(ends)}"


def _choose_out(folders: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        several = len(folders) > 1
        return Path(os.path.commonpath([each.absolute() if several else each for each in folders])) / PAGE
    if out.suffix.lower() not in (".html", ".htm"):
        raise FastaeError(f"--out {str(out)!r} must end in .html: its figures go into a folder of that name")
    if out.is_dir():
        raise FastaeError(f"--out {str(out)!r} is a folder: name a file in it")
    return out


def _write(out: Path, page: bytes, files: Mapping[str, bytes]) -> None:
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise FastaeError(
                f"the figures' folder {str(folder)!r} is a link: remove it, or set another --out"
            )
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        with atomic_write(out) as file:  # last, so that it is never newer than its figures
            file.write(page)
    except OSError as error:
        raise FastaeError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
