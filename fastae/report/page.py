"""Renders the report as one HTML file. Figures are data URIs, so that nothing is loaded from elsewhere."""

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
"""A no-break space, which keeps a number and its unit together. `printable` would escape it."""


@dataclass(frozen=True)
class Chart:
    """A figure of the report."""

    name: str
    """The name of its file, without a suffix."""

    title: str

    alt: str
    """A description for readers who cannot see it."""

    svg: bytes
    """The figure for a light page, with a transparent background."""

    smoothing: Sequence[float]
    """The weights by which its curves are smoothed."""


@dataclass(frozen=True)
class Page:
    """The content of template.html.j2, which escapes all text."""

    is_single: bool
    """Whether the report is on a single run."""

    has_seeds: bool
    """Whether some runs differ only in their seeds."""

    headline: str
    sentences: Sequence[str]
    made: str
    version: str
    warnings: Sequence[str]

    unmeasured: Sequence[str]
    """Warnings about runs without reconstructions."""

    charts: Sequence[Chart]
    gallery: Gallery | None
    head: Sequence[str]
    rows: Sequence[TableRow]
    difference_head: Sequence[str]
    difference_rows: Sequence[DifferenceRow]

    undecided: Sequence[str]
    """Sentences about what the differences do not show."""

    hours: Sequence[str]

    differing: Sequence[tuple[str, str]]
    """(name, value) of settings that differ between the runs or from their defaults."""

    common: Sequence[tuple[str, str]]
    """(name, value) of all other settings."""

    commands: Sequence[Command]

    @property
    def smoothing(self) -> str:
        """The weights of the smoothed curves, such as "0.5" or "0.17 to 0.95"; empty if there are none."""
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
    """Escapes control characters and undecodable bytes of inserted text, as in the terminal.

    Markup is returned unchanged, since it was made of text that is escaped already.
    """
    return _printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _printable(text: str) -> str:
    return NBSP.join(map(printable, text.split(NBSP)))


def unbroken(text: str) -> Markup:
    """The text as HTML that has no line breaks within options or between an option and its value."""
    parts = re.split(r"(?<![^\s(])(--[a-z][a-z-]*(?: (?!--|\()[^\s,;)]+)?)", _printable(text))
    return Markup().join(
        Markup('<span class="unbroken">{}</span>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
