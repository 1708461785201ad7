"""Which part of an image is used, and how large it is in the end."""

from __future__ import annotations

from dataclasses import dataclass

from fastae.utils.arguments import CROP, IMAGE_SIZE, Range, require_int, require_type

SIZE = Range(1, IMAGE_SIZE.most)
"""The model takes multiples of 16 alone; a loader need not."""


@dataclass(frozen=True)
class CropResize:
    """What is cut out of each image, and the size it is resized to."""

    crop: int | None = None
    """Side of the square in the middle in pixels, 1 to 65,500. Default: the largest that the image has."""

    size: int = 128
    """Side of the result in pixels, 1 to 4,096."""

    antialias: bool = False
    """Filter while shrinking. TensorFlow's default, and so the article's, is not to."""

    def __post_init__(self) -> None:
        if self.crop is not None:
            require_int(self.crop, "crop", CROP)
        require_int(self.size, "size", SIZE)
        require_type(self.antialias, "antialias", bool)

    def in_words(self) -> str:
        """'the largest centred square, resized to 128x128'."""
        square = f"the centred {self.crop}x{self.crop} pixels" if self.crop else "the largest centred square"
        return f"{square}, resized to {self.size}x{self.size}{', antialiased' if self.antialias else ''}"
