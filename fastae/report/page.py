"""The report as one HTML file, with every figure inside as a data URI: nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fastae.losses import loss_index
from fastae.report.commands import Command
from fastae.report.differences import CONFIDENCE
from fastae.report.figures import draw_strips, short
from fastae.report.quality import Gallery
from fastae.report.tables import DifferenceRow, TableRow, percent
from fastae.utils.console import printable

NBSP = "\u00a0"
"""No control character, though `printable` escapes it: it keeps a number and its unit together."""


@dataclass(frozen=True)
class Chart:
    """svg: on a transparent ground, for a light page. alt: what it shows, for those who cannot see it.

    smoothing: the weights that its curves are smoothed with.
    """

    name: str
    title: str
    alt: str
    svg: bytes
    smoothing: Sequence[float]


@dataclass(frozen=True)
class Page:
    """What template.html.j2 shows, as text that it escapes.

    is_single: whether it is of one run. has_seeds: whether some runs differ in their seeds alone.
    unmeasured: warnings about runs without reconstructions. differing, common: settings as (name, value).
    undecided: what the differences do not show, in sentences.
    """

    is_single: bool
    has_seeds: bool
    headline: str
    sentences: Sequence[str]
    made: str
    version: str
    warnings: Sequence[str]
    unmeasured: Sequence[str]
    charts: Sequence[Chart]
    gallery: Gallery | None
    head: Sequence[str]
    rows: Sequence[TableRow]
    difference_head: Sequence[str]
    difference_rows: Sequence[DifferenceRow]
    undecided: Sequence[str]
    hours: Sequence[str]
    differing: Sequence[tuple[str, str]]
    common: Sequence[tuple[str, str]]
    commands: Sequence[Command]

    @property
    def smoothing(self) -> str:
        """The weights that curves are smoothed with, "0.5" or "0.17 to 0.95"; empty if none is."""
        weights = [weight for chart in self.charts for weight in chart.smoothing]
        if not any(weights):
            return ""
        return " to ".join(dict.fromkeys(f"{weight:.2g}" for weight in (min(weights), max(weights))))


def render(page: Page) -> bytes:
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "svg": lambda svg: _data_uri(svg, "image/svg+xml"),
        "strip": lambda row: _data_uri(draw_strips([row.pictures]), "image/png"),
        "error": lambda error: short(loss_index(error)),
        "unbroken": unbroken,
    }
    environment.filters.update(filters)
    text = environment.get_template("template.html.j2").render(page=page, confidence=percent(CONFIDENCE))
    return text.encode()


def _visible(value: object) -> object:
    """What the template inserts, with control characters and stray bytes escaped, as in the terminal.

    What is HTML already was made of such text.
    """
    return _printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _printable(text: str) -> str:
    return NBSP.join(map(printable, text.split(NBSP)))


def unbroken(text: str) -> Markup:
    """The text as HTML in which no line that is wide enough is broken in an option, nor before its value."""
    parts = re.split(r"(?<![^\s(])(--[a-z][a-z-]*(?: (?!--|\()[^\s,;)]+)?)", _printable(text))
    return Markup().join(
        Markup('<span class="unbroken">{}</span>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
