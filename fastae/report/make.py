"""`fastae report`: makes report.html and its figures from run folders.

Figures are in the page as data URIs, so that it loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastae.device.apply import use_device
from fastae.device.choose import choose_device
from fastae.errors import FastaeError, SettingError
from fastae.experiment.metrics import loss_index
from fastae.report.analysis import analyse
from fastae.report.compare import Comparison, Group, compare, group_seeds
from fastae.report.figures import draw_charts, short
from fastae.report.forest import draw_forest
from fastae.report.gallery import make_gallery
from fastae.report.runs import Run, find_runs
from fastae.report.tables import answer, conclusions, difference_table, hours, settings, table
from fastae.utils.arguments import require_type
from fastae.utils.console import log, printable
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write, remove_drafts
from fastae.utils.paths import user_folder

PAGE = "report.html"
PICTURES = "reconstructions.png"

ELSEWHERE = "or write another page by `fastae report --out FILE`"
"""The remedy for a page that is not written. Another --out of `fastae sweep` would begin another sweep."""


def make_report(
    folders: Sequence[str | Path], out: str | Path | None = None, data: str | Path | None = None
) -> Path:
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
    require_type(folders, "folders", list, tuple)
    if not folders:
        raise SettingError("folders", "is empty: name a run folder, or a folder with runs")
    paths = [user_folder(folder, "folders") for folder in folders]
    images = str(user_folder(data, "data")) if data else None
    if images and not Path(images).is_dir():
        raise SettingError("data", f"{images!r} is not a folder: name the folder of the runs' images")
    out = _choose_out(paths, user_folder(out, "out") if out else None)
    runs, warnings = find_runs(paths)
    comparison, groups = compare(runs), group_seeds(runs)
    groups.sort(key=lambda group: group.runs[0] not in comparison.compared)
    gallery, missing = make_gallery(groups, use_device(choose_device("auto")), images)
    if not gallery and out.exists() and (out.with_suffix("") / PICTURES).exists():
        raise FastaeError(f"{str(out)!r} is kept, since a new page would have {missing[0]}; {ELSEWHERE}")
    warnings = [*warnings, *comparison.warnings, *missing]
    content = _content(runs, groups, comparison)
    page = render(**content, gallery=gallery, warnings=warnings)
    figures = {f"{chart.name}.svg": chart.svg for chart in (*content["charts"], *content["forest"])}
    if gallery:
        figures[PICTURES] = gallery.png(*chain(*gallery.groups.values()))
    _write(out, page, figures)
    for warning in warnings:
        log(f"warning   {warning}", "yellow")
    log(f"answer    {content['headline']}", "bold")
    log(f"report    {out}, and its figures in {out.with_suffix('')}", "bold")
    return out


def _content(runs: Sequence[Run], groups: Sequence[Group], comparison: Comparison) -> dict[str, Any]:
    """Returns the variables of the template that come from the runs' numbers and settings."""
    analysis = analyse(comparison)
    headline, sentences = answer(comparison, groups[0].label, analysis)
    differing, common = settings(runs)
    return {
        "is_single": len(runs) == 1,
        "headline": headline,
        "sentences": sentences,
        "made": time.strftime("%-d %B %Y, %H:%M"),
        "version": __version__,
        "charts": draw_charts(groups),
        "forest": draw_forest(analysis),
        "numbers": table(groups),
        "differences": difference_table(analysis),
        "ends": comparison.ends,
        "conclusions": conclusions(comparison, analysis),
        "hours": hours(runs),
        "differing": differing,
        "common": common,
    }


def render(**content: Any) -> bytes:
    """Returns the page as HTML. `content` are the variables of template.html.j2, which escapes all text."""
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in (data_uri, loss_index, short)}
    return environment.get_template("template.html.j2").render(**content).encode()


def _visible(value: object) -> object:
    """Escapes control characters and undecodable bytes of inserted text, as in the terminal.

    Markup is returned unchanged, since it was made of text that is escaped already.
    """
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def data_uri(content: bytes, mime: str) -> str:
    """Returns a file's content as an address, which a page can use instead of a link."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _choose_out(folders: Sequence[Path], out: Path | None) -> Path:
    """Returns the path of the page. Raises FastaeError if `out` cannot be one."""
    if out is None:
        return Path(os.path.commonpath([folder.absolute() for folder in folders])) / PAGE
    if out.suffix.lower() not in (".html", ".htm"):
        raise FastaeError(f"--out {str(out)!r} must end in .html: its figures go into a folder of that name")
    if out.is_dir():
        raise FastaeError(f"--out {str(out)!r} is a folder: name a file in it")
    return out


def _write(out: Path, page: bytes, files: Mapping[str, bytes]) -> None:
    """Writes the page, and its figures into the folder beside it. Raises FastaeError."""
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise FastaeError(f"the figures' folder {str(folder)!r} is a link: remove it, {ELSEWHERE}")
        remove_drafts(folder)
        remove_drafts(out.parent, out.name)  # a run that is beside it may be writing
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        with atomic_write(out) as file:  # last, so that it is never newer than its figures
            file.write(page)
    except OSError as error:
        raise FastaeError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
