"""The part of an image that is used, and the size that it is resized to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastae.errors import SettingError
from fastae.utils.arguments import CROP, IMAGE_SIZE, Range, require_int, require_type

SIZE = Range(1, IMAGE_SIZE.most)
"""The image sizes that a loader supports. The model also requires a multiple of 16."""


@dataclass(frozen=True)
class CropResize:
    """The crop of each image, and the size that it is resized to."""

    crop: int | None = None
    """Side of the central square in pixels, 1 to 65,500. Default: the largest square of the image.

    If `size` has another ratio than a square, the largest central region of this ratio is used, of the square
    if there is a `crop`, else of the whole image.
    """

    size: int | tuple[int, int] = 128
    """Side of the result, or its height and width, in pixels, each 1 to 4,096."""

    antialias: bool = False
    """Whether shrinking antialiases. TensorFlow does not by default, nor did the article."""

    def __post_init__(self) -> None:
        if self.crop is not None:
            require_int(self.crop, "crop", CROP)
        object.__setattr__(self, "size", require_size(self.size, "size"))
        require_type(self.antialias, "antialias", bool)

    @property
    def shape(self) -> tuple[int, int]:
        """The height and width of the result."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def is_square(self) -> bool:
        return not isinstance(self.size, tuple)

    def in_words(self) -> str:
        """Describes the crop and resize, for example 'the largest centred square, resized to 128x128'."""
        square = f"the centred {self.crop}x{self.crop} pixels" if self.crop else "the largest centred square"
        height, width = self.shape
        return f"{square}, resized to {height}x{width}{', antialiased' if self.antialias else ''}"


def require_size(value: object, name: str) -> int | tuple[int, int]:
    """Returns a side in pixels, or a height and width. Raises unless `value` is that."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return require_int(value, name, SIZE)
    if len(value) != 2:
        raise SettingError(name, f"must be an integer or (height, width), not {value!r:.60}")
    height, width = (require_int(side, name, SIZE) for side in value)
    return height if height == width else (height, width)
