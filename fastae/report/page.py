"""Renders the report as one HTML file. Figures are data URIs, so that nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fastae.losses import loss_index
from fastae.report.figures import draw_strips, short
from fastae.utils.console import printable


def render(**content: Any) -> bytes:
    """The page as HTML. `content` are the variables of template.html.j2, which escapes all text."""
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    used = (data_uri, draw_strips, loss_index, short, unbroken)
    environment.filters |= {function.__name__: function for function in used}
    return environment.get_template("template.html.j2").render(**content).encode()


def _visible(value: object) -> object:
    """Escapes control characters and undecodable bytes of inserted text, as in the terminal.

    Markup is returned unchanged, since it was made of text that is escaped already.
    """
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def unbroken(text: str) -> Markup:
    """The text as HTML that has no line breaks within options or between an option and its value."""
    parts = re.split(r"(?<![^\s(])(--[a-z][a-z-]*(?: (?!--|\()[^\s,;)]+)?)", printable(text))
    return Markup().join(
        Markup('<span class="unbroken">{}</span>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
