"""The report as one HTML file, with every figure inside as a data URI: nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastae.losses import loss_index
from fastae.report.figures import SMOOTHING, draw_strips, short
from fastae.report.quality import Gallery
from fastae.report.tables import TableRow
from fastae.utils.console import printable

NBSP = "\u00a0"
"""No control character, though `printable` escapes it: it keeps a number and its unit together."""


@dataclass(frozen=True)
class Chart:
    """svg: on a transparent ground, for a light page. alt: what it shows, for those who cannot see it."""

    name: str
    title: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Page:
    """What template.html.j2 shows, as text that it escapes.

    is_single: whether it is of one run. has_seeds: whether a loss has several runs.
    differing, common: settings as (name, value).
    """

    is_single: bool
    has_seeds: bool
    headline: str
    sentences: Sequence[str]
    made: str
    version: str
    warnings: Sequence[str]
    charts: Sequence[Chart]
    gallery: Gallery | None
    head: Sequence[str]
    rows: Sequence[TableRow]
    hours: Sequence[str]
    differing: Sequence[tuple[str, str]]
    common: Sequence[tuple[str, str]]
    commands: Sequence[str]


def render(page: Page) -> bytes:
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": lambda svg: _data_uri(svg, "image/svg+xml"),
        "strip": lambda row: _data_uri(draw_strips([row.pictures]), "image/png"),
        "error": lambda error: short(loss_index(error)),
    }
    return environment.get_template("template.html.j2").render(page=page, smoothing=SMOOTHING).encode()


def _visible(value: object) -> object:
    """What the template inserts, with control characters and stray bytes escaped, as in the terminal."""
    return NBSP.join(map(printable, value.split(NBSP))) if isinstance(value, str) else value


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
