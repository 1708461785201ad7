"""`fastae report`: run folders in, report.html and its figures out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastae.errors import FastaeError
from fastae.report.compare import compare
from fastae.report.figures import SMOOTHING, draw_curves, draw_strips, short, smooth
from fastae.report.page import Chart, Page, render
from fastae.report.quality import make_gallery, measure
from fastae.report.runs import Run, Series, find_runs
from fastae.report.tables import answer, commands, hours, settings, table
from fastae.utils.console import log, printable, track
from fastae.utils.device import choose_device
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write
from fastae.utils.paths import expand_home

PAGE = "report.html"


def make_report(folders: Sequence[Path], out: Path | None = None, data: str | None = None) -> Path:
    """Writes the page and its figures; returns the page's path.

    folders: runs, or folders with runs one or two levels below. out: the page; by default report.html in the
    folder, or in the one that holds all of several folders. The figures go into a folder beside the page, of
    the same name. data: the folder of the runs' images, as `measure` takes it.

    Raises FastaeError for a user's mistake.
    """
    folders = list(map(expand_home, folders))
    out = _choose_out(folders, expand_home(out) if out else None)
    runs, warnings = find_runs(folders)
    page, figures = _page(runs, warnings, data, [*map(str, folders), *(["--data", data] if data else [])])
    _write(out, render(page), figures)
    for warning in page.warnings:
        log(f"warning   {printable(warning)}", "yellow")
    log(f"answer    {page.headline}", "bold")
    log(f"report    {out}, and its figures in {out.with_suffix('')}", "bold")
    return out


def _page(
    runs: Sequence[Run], warnings: Sequence[str], data: str | None, arguments: Sequence[str]
) -> tuple[Page, dict[str, bytes]]:
    """The page, and its figures by file name."""
    comparison = compare(runs)
    measured, unmeasured = measure(track(runs, "reconstructing"), choose_device("auto"), data)
    gallery = make_gallery([*comparison.compared, *runs], measured)
    charts = _charts(runs)
    headline, sentences = answer(comparison)
    head, rows = table(runs, measured, comparison)
    differing, common = settings(runs)
    page = Page(
        is_single=len(runs) == 1,
        has_seeds=len(runs) > len({run.loss for run in runs}),
        headline=headline,
        sentences=sentences,
        made=time.strftime("%-d %B %Y, %H:%M"),
        version=__version__,
        warnings=[*warnings, *comparison.warnings, *unmeasured],
        charts=charts,
        gallery=gallery,
        head=head,
        rows=rows,
        hours=list(hours(runs)),
        differing=differing,
        common=common,
        commands=list(commands(runs, arguments)),
    )
    figures = {f"{chart.name}.svg": chart.svg for chart in charts}
    if gallery:
        shown = [row.pictures for rows in gallery.groups.values() for row in rows]
        figures["reconstructions.png"] = draw_strips(shown)
    return page, figures


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """The article's first figure, and held-out images beside it; without those that have nothing to show."""
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


def _choose_out(folders: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        if len(folders) == 1:
            return folders[0] / PAGE
        known = [folder.absolute() for folder in folders if folder.is_dir()]  # `find_runs` refuses the others
        return (Path(os.path.commonpath(known)) if known else Path()) / PAGE
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
                f"{str(folder)!r}, for the figures, is a link: remove it, or name another --out"
            )
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        with atomic_write(out) as file:  # last, so that it is never newer than its figures
            file.write(page)
    except OSError as error:
        raise FastaeError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
