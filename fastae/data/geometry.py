"""Which part of an image is used, and how large it is in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """crop: side of the centred square in pixels, None for the largest. size: side of the output.

    antialias: filter while shrinking (TensorFlow's default, and so the article's, is not to).
    """

    crop: int | None = None
    size: int = 128
    antialias: bool = False
