"""`fastae report`: run folders in, report.html and its figures out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastae.errors import FastaeError
from fastae.report.compare import compare
from fastae.report.figures import SMOOTHING, draw_curves, draw_gallery, draw_strip, short, smooth
from fastae.report.page import Chart, Page, render
from fastae.report.quality import make_gallery, measure, read_samples
from fastae.report.runs import Run, Series, find_runs
from fastae.report.tables import answer, commands, hours, settings, table
from fastae.utils.console import log, printable, track
from fastae.utils.device import choose_device
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write

PAGE = "report.html"
SUFFIXES = (".html", ".htm")


def make_report(folders: Sequence[Path], out: Path | None = None, data: str | None = None) -> Path:
    """Writes the page and its figures; returns the page's path.

    folders: runs, or folders with runs one or two levels below. out: the page; by default report.html in the
    one folder that was named, or in the one that holds all that were. The figures go into a folder beside it,
    named as it is. data: the folder of the runs' images, as `measure` takes it.

    Raises FastaeError for a user's mistake.
    """
    out = _place(folders, out)
    runs, warnings = find_runs(folders)
    page, figures = _page(runs, warnings, data, [*map(str, folders), *(["--data", data] if data else [])])
    _write(out, render(page), figures)
    for warning in page.warnings:
        log(f"warning   {printable(warning)}")
    log(f"answer    {page.headline}")
    log(f"report    {out}, and its figures in {out.with_suffix('')}")
    return out


def _page(
    runs: Sequence[Run], warnings: Sequence[str], data: str | None, arguments: Sequence[str]
) -> tuple[Page, dict[str, bytes]]:
    """The page, and the figures in it by the name of their file."""
    comparison = compare(runs)
    measured, reasons = measure(track(runs, "reconstructing"), choose_device("auto"), data)
    shown = measured or {run.path: samples for run in runs if (samples := read_samples(run))}
    gallery = make_gallery([*comparison.compared, *(r for r in runs if r not in comparison.compared)], shown)
    charts = tuple(_charts(runs))
    headline, sentences = answer(comparison)
    differing, common = settings(runs)
    groups = gallery.groups.items() if gallery else ()
    page = Page(
        single=len(runs) == 1,
        headline=headline,
        sentences=sentences,
        made=time.strftime("%-d %B %Y, %H:%M"),
        version=__version__,
        warnings=(
            *warnings,
            *(f"{run.name}: {mark}" for run in runs for mark in comparison.marks[run.path]),
            *reasons,
        ),
        charts=charts,
        gallery=gallery,
        strips={kind: tuple(map(draw_strip, rows)) for kind, rows in groups},
        recomputed=bool(measured),
        rows=tuple(table(runs, measured, comparison)),
        hours=tuple(hours(runs)),
        differing=differing,
        common=common,
        commands=tuple(commands(runs, arguments)),
    )
    figures = {f"{chart.name}.svg": chart.svg for chart in charts}
    return page, figures | ({"reconstructions.png": draw_gallery(gallery)} if gallery else {})


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """The article's first figure, and held-out images beside it; those that have anything to show."""
    charts = []
    for name, title, smoothing, curves in (
        ("train", "Training batches", SMOOTHING, [(run.loss, run.train) for run in runs]),
        ("held-out", "Held-out images", 0.0, [(run.loss, run.held_out) for run in runs]),
    ):
        curves = [(loss, series) for loss, series in curves if len(series.finite())]
        if curves:
            ends = ", ".join(f"{loss} {_end(series, smoothing)}" for loss, series in curves)
            alt = f"{title}: squared error × 10⁷ by iteration. At the end: {ends}."
            charts.append(Chart(name, title, alt, draw_curves(curves, smoothing)))
    return charts


def _end(series: Series, smoothing: float) -> str:
    shown = smooth(series.values, smoothing) if smoothing else series.values
    return short(float(shown[np.isfinite(shown)][-1]))


def _place(folders: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        known = [folder for folder in folders if folder.is_dir()]  # the others are refused by `find_runs`
        above = Path(os.path.commonpath([folder.absolute() for folder in known])) if known else Path()
        return (folders[0] if len(folders) == 1 else above) / PAGE
    if out.suffix.lower() not in SUFFIXES:
        raise FastaeError(
            f"--out {str(out)!r} must end in .html: its figures go into a folder named without it"
        )
    if out.is_dir():
        raise FastaeError(f"--out {str(out)!r} is a folder: name a file in it")
    return out


def _write(out: Path, page: bytes, files: Mapping[str, bytes]) -> None:
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        with atomic_write(out) as file:  # last, so that it is never newer than its figures
            file.write(page)
    except OSError as error:
        raise FastaeError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
