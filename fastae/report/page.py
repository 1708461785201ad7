"""The report as one HTML file, with every figure inside as a data URI: nothing is loaded from elsewhere.

Jinja escapes all that it is given.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastae.losses import loss_index
from fastae.report.figures import SMOOTHING, short
from fastae.report.quality import Gallery
from fastae.report.tables import HEAD, TableRow


@dataclass(frozen=True)
class Chart:
    """svg: on a transparent ground, for a light page. alt: what it shows, for those who cannot see it."""

    name: str
    title: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Page:
    """What template.html.j2 shows. strips: the gallery's rows as PNGs, by group.

    single: whether it is of one run. recomputed: whether from the images, not from sample sheets.
    differing, common: settings as (name, value).
    """

    single: bool
    headline: str
    sentences: tuple[str, ...]
    made: str
    version: str
    warnings: tuple[str, ...]
    charts: tuple[Chart, ...]
    gallery: Gallery | None
    strips: Mapping[str, tuple[bytes, ...]]
    recomputed: bool
    rows: tuple[TableRow, ...]
    hours: tuple[str, ...]
    differing: tuple[tuple[str, str], ...]
    common: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def render(page: Page) -> bytes:
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"uri": _data_uri, "error": lambda error: short(loss_index(error))}
    text = environment.get_template("template.html.j2").render(page=page, head=HEAD, smoothing=SMOOTHING)
    # A stray byte in a path comes as a surrogate, which UTF-8 cannot write.
    return text.encode("utf-8", "backslashreplace")


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
