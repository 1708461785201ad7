"""The part of an image that is used, and the size that it is resized to."""

from __future__ import annotations

from dataclasses import dataclass

from fastae.utils.arguments import CROP, IMAGE_SIZE, Range, require_int, require_type

SIZE = Range(1, IMAGE_SIZE.most)
"""The image sizes that a loader supports. The model also requires a multiple of 16."""


@dataclass(frozen=True)
class CropResize:
    """The crop of each image, and the size that it is resized to."""

    crop: int | None = None
    """Side of the central square in pixels, 1 to 65,500. Default: the largest square of the image."""

    size: int = 128
    """Side of the result in pixels, 1 to 4,096."""

    antialias: bool = False
    """Whether shrinking antialiases. TensorFlow does not by default, nor did the article."""

    def __post_init__(self) -> None:
        if self.crop is not None:
            require_int(self.crop, "crop", CROP)
        require_int(self.size, "size", SIZE)
        require_type(self.antialias, "antialias", bool)

    def in_words(self) -> str:
        """Describes the crop and resize, for example 'the largest centred square, resized to 128x128'."""
        square = f"the centred {self.crop}x{self.crop} pixels" if self.crop else "the largest centred square"
        return f"{square}, resized to {self.size}x{self.size}{', antialiased' if self.antialias else ''}"
