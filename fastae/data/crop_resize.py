"""Which part of an image is used, and how large it is in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CropResize:
    """crop: side of the centred square in pixels, None for the largest. size: side of the output.

    antialias: filter while shrinking (TensorFlow's default, and so the article's, is not to).
    """

    crop: int | None = None
    size: int = 128
    antialias: bool = False

    def in_words(self) -> str:
        """'the largest centred square, resized to 128x128'."""
        square = f"the centred {self.crop}x{self.crop} pixels" if self.crop else "the largest centred square"
        return f"{square}, resized to {self.size}x{self.size}{', antialiased' if self.antialias else ''}"
