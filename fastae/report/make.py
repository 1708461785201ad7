"""`fastae report`: run folders in, report.html and its figures out."""

from __future__ import annotations

import io
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fastae
from fastae.console import printable, say, track
from fastae.device import choose_device
from fastae.errors import FastaeError
from fastae.files import atomic_write
from fastae.losses import LOSSES
from fastae.monitor.text import COLUMNS, evidence, heading, headline, remarks, rows
from fastae.report import figures, words
from fastae.report.adam import EpsReach
from fastae.report.compare import Mixture, find_mixture, standing
from fastae.report.curves import Series
from fastae.report.figures import THEMES, Curve, name_of
from fastae.report.gallery import Gallery, make_gallery
from fastae.report.gather import Run, gather
from fastae.report.hours import Hours, hours_of, shares
from fastae.report.page import Picture, files_of, render
from fastae.report.quality import Measured, measure
from fastae.report.tables import cost_table, quality_table, settings_table

SMOOTHING = 0.95
"""The article's, as TensorBoard does it."""

PAGE = "report.html"
SUFFIXES = (".html", ".htm")


def make_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page and its figures; returns the page's path.

    folders: runs, or folders with runs one or two levels below. out: the page; by default report.html in the
    one folder that was named, or in the one that holds all that were. The figures go into a folder beside it,
    named as it is. Raises FastaeError for a user's mistake.
    """
    out = _place(folders, out)
    runs, troubles = gather(folders)
    mixture = find_mixture(runs)
    measured = measure(track(runs, "reconstructing"), choose_device("auto"))
    compared = {run.path for run in mixture.compared}
    gallery = make_gallery(sorted(runs, key=lambda run: run.path not in compared), measured)
    warnings = [*troubles, *mixture.warnings, *measured.notes]
    values, pictures = _contents(runs, mixture, measured, gallery)
    values["warnings"] = warnings
    values["command"] = shlex.join(["fastae", "report", *map(str, folders)])
    _write(out, render(values), files_of(pictures))
    for warning in warnings:
        say(f"warning   {printable(warning)}")
    say(f"answer    {values['answer'].headline.replace(words.BLANK, ' ')}")
    say(f"report    {out}, and its figures in {figure_folder(out)}")
    return out


def figure_folder(out: Path) -> Path:
    return out.with_suffix("")


def _place(folders: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        known = [folder for folder in folders if folder.is_dir()]  # the others are refused by `gather`
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
    folder = figure_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        with atomic_write(out) as file:  # last, so that it is never newer than its figures
            file.write(page)
    except OSError as error:
        raise FastaeError(f"cannot write {str(out)!r}: {error.strerror or error}") from None


def _contents(
    runs: Sequence[Run], mixture: Mixture, measured: Measured, gallery: Gallery | None
) -> tuple[dict[str, Any], list[Picture]]:
    """What the template shows, and the pictures among it that are also files."""
    found = standing(mixture)
    hours = hours_of(runs)
    reach = _reach(runs, measured)
    curves = _curve_pictures(runs)
    apart = _apart_picture(mixture)
    bars = _bars_picture(runs)
    sheet = _sheet(gallery)
    values = {
        "made": time.strftime("%-d %B %Y, %H:%M"),
        "version": fastae.__version__,
        "runs": runs,
        "name_of": name_of,
        "tiny": words.tiny,
        "power": words.power,
        "short": figures.short,
        "answer": words.answer(mixture, found, gallery),
        "facts": _facts(runs, hours),
        "curves": curves,
        "curve_note": words.smoothing_told(runs),
        "smoothing": SMOOTHING,
        "apart": apart,
        "gallery": gallery,
        "strips": _strips(gallery),
        "samples": [] if gallery else _samples(runs),
        "quality": quality_table(runs, measured.quality, mixture),
        "measured": bool(measured.quality),
        "reason": words.reason(reach),
        "reach": reach,
        "hours": hours,
        "time": words.time_told(hours, runs),
        "bars": bars,
        "cost": cost_table(runs),
        "utilisation": [_utilisation(run) for run in runs],
        "utilisation_head": COLUMNS,
        "settings": settings_table(runs),
    }
    pictures = [*curves, *(each for each in (apart, bars, sheet) if each)]
    return values, pictures


def _curve_pictures(runs: Sequence[Run]) -> list[Picture]:
    pictures = []
    for part, told, smoothing in (
        ("train", "training batches", SMOOTHING),
        ("held_out", "held-out images", 0.0),
    ):
        drawn = figures.curves(runs, lambda run, part=part: getattr(run, part))  # type: ignore[misc]
        if not drawn:
            continue
        for log in (False, True):
            scale = "logarithmic" if log else "linear"
            pictures.append(
                _drawn(
                    f"{part.replace('_', '-')}-{'log' if log else 'linear'}",
                    f"Squared error × 10⁷ of {told} by iteration, {scale} axis. {_ends(drawn, smoothing)}",
                    drawn,
                    y=f"{told}, squared error × 10⁷",
                    log=log,
                    smoothing=smoothing,
                )
            )
    return pictures


def _apart_picture(mixture: Mixture) -> Picture | None:
    """Each compared run's held-out error, in percent of the mean of the losses' at that iteration."""
    of_loss: dict[str, Run] = {}
    for run in mixture.compared:
        of_loss.setdefault(run.loss, run)
    if len(of_loss) < 2:
        return None
    common = set.intersection(*(set(run.held_out.finite().steps.tolist()) for run in of_loss.values()))
    steps = np.array(sorted(step for step in common if step))
    if len(steps) < 2:
        return None
    mean = np.mean([[run.held_out.at(step) for step in steps] for run in of_loss.values()], axis=0)

    def apart(run: Run) -> Series:
        errors = np.array([run.held_out.at(step) for step in steps])
        return Series(steps, 100 * (errors / mean - 1))

    drawn = figures.curves(mixture.compared, apart)
    return _drawn(
        "held-out-apart",
        f"How far each loss's held-out error is from the mean of all, in percent. {_ends(drawn, 0, '%')}",
        drawn,
        y="held-out error, from the mean of the losses",
        zero=True,
    )


def _drawn(name: str, alt: str, drawn: Sequence[Curve], **options: Any) -> Picture:
    light, dark = (figures.draw_curves(drawn, theme, **options) for theme in THEMES)
    return Picture(name, alt, light, dark)


def _ends(drawn: Sequence[Curve], smoothing: float, unit: str = "") -> str:
    """Where the lines end, in words."""
    form = "{:+.1f} %" if unit else "{:,.0f}"
    ends = []
    for curve in drawn:
        shown = figures.smooth(curve.series.values, smoothing) if smoothing else curve.series.values
        if curve.label:
            ends.append(f"{curve.label} {form.format(shown[np.isfinite(shown)][-1])}")
    return f"At the end: {', '.join(ends)}."


def _bars_picture(runs: Sequence[Run]) -> Picture | None:
    known = [(run.name, found) for run in runs if (found := shares(run))]
    if not known:
        return None
    names = [name if len(name) <= 22 else f"{name[:21]}…" for name, _ in known]
    parts = {part: [of_run[part] for _, of_run in known] for part in known[0][1]}
    light, dark = (figures.draw_bars(names, parts, theme, x="share of the run's time") for theme in THEMES)
    told = "; ".join(
        f"{name}: {', '.join(f'{part} {share:.0%}' for part, share in each.items())}" for name, each in known
    )
    return Picture("time", f"Where the time of each run went. {told}.", light, dark)


def _strips(gallery: Gallery | None) -> Mapping[str, list[bytes]]:
    """The rows of the gallery as PNGs, by group."""
    groups = gallery.groups.items() if gallery else ()
    return {kind: [figures.draw_strip(row) for row in rows_] for kind, rows_ in groups}


def _sheet(gallery: Gallery | None) -> Picture | None:
    """All of the gallery on one sheet, for the folder: the page shows it row by row."""
    if gallery is None:
        return None
    sheet = figures.draw_gallery(gallery.losses, gallery.groups)
    return Picture("reconstructions", "", sheet, kind="png")


def _samples(runs: Sequence[Run]) -> list[tuple[Run, bytes]]:
    """The last picture that each run drew of its held-out images, for want of better."""
    found = []
    for run in runs:
        pictures = sorted((run.path / "samples").glob("*.png"))
        for picture in reversed(pictures):
            with suppress(OSError, SyntaxError):  # Pillow's, of a file that is none or damaged
                content = picture.read_bytes()
                Image.open(io.BytesIO(content), formats=["PNG"]).verify()
                found.append((run, content))
                break
    return found


def _reach(runs: Sequence[Run], measured: Measured) -> list[EpsReach]:
    """Of each loss's first run whose checkpoint could be read."""
    of_loss: dict[str, EpsReach] = {}
    for run in runs:
        if run.path in measured.eps:
            of_loss.setdefault(run.loss, measured.eps[run.path])
    return list(of_loss.values())


def _utilisation(run: Run) -> dict[str, Any]:
    """A run's GPU and host report in pieces."""
    if run.gpu is None:
        return {"name": run.name, "missing": run.gpu_note}
    return {
        "name": run.name,
        "missing": "",
        "heading": heading(run.gpu),
        "rows": list(rows(run.gpu.summary)),
        "remarks": [" ".join(line.split()) for line in remarks(run.gpu.summary)],
        "verdict": headline(run.gpu),
        "evidence": evidence(run.gpu),
        "advice": run.gpu.diagnosis.advice,
    }


def _facts(runs: Sequence[Run], hours: Hours) -> list[tuple[str, str]]:
    """The strip below the title: a figure and what it is."""
    losses = len({run.loss for run in runs})
    facts = [
        (f"{losses} of {len(LOSSES)}", f"losses, in {words.plural(len(runs), 'run')}"),
        (f"{max(run.iteration for run in runs):,}", "iterations, of the article's 100,000"),
    ]
    rates = [rate for run in runs if (rate := run.speed().images_per_second) is not None]
    if rates:
        facts.append((f"{np.median(rates):,.0f}", "images a second"))
    if hours.total is not None and not hours.unlike:
        facts.append((words.time(3600 * hours.total), "projected for the article's 30 hours"))
    return facts
