"""The report as one HTML file: what was found, in the template's places, with every figure inside.

Jinja escapes all that it is given; the figures are data URIs. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Picture:
    """A figure. light: shown on a light page and in print; dark: on a dark page.

    dark: empty where one picture serves both. alt: what it shows, for those who cannot see it.
    """

    name: str
    alt: str
    light: bytes
    dark: bytes = b""
    kind: str = "svg"

    def files(self) -> Mapping[str, bytes]:
        """File name -> content, for the folder beside the page."""
        if not self.dark:
            return {f"{self.name}.{self.kind}": self.light}
        return {f"{self.name}.{self.kind}": self.light, f"{self.name}-dark.{self.kind}": self.dark}


def render(values: Mapping[str, Any]) -> bytes:
    """The page. `values`: see template.html.j2, which fails on one that is missing."""
    environment = Environment(
        loader=PackageLoader("fastae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = data_uri
    page = environment.get_template("template.html.j2").render(values)
    # A stray byte in a path comes as a surrogate, which UTF-8 cannot write.
    return page.encode("utf-8", "backslashreplace")


def data_uri(content: bytes, kind: str) -> str:
    """kind: "svg" or "png"."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def files_of(pictures: Sequence[Picture]) -> dict[str, bytes]:
    """All files of these pictures, by name."""
    return {name: content for picture in pictures for name, content in picture.files().items()}
