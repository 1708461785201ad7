"""Checks of arguments at the public entry points. Each raises SettingError, which names the argument."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from fastae.errors import SettingError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both included."""

    least: float
    most: float

    def __str__(self) -> str:
        """Returns the range as --help shows it, without bounds that only prevent an overflow."""
        if self.most < 100_000:
            return f"{self.least:g} to {self.most:g}"
        return f"{self.least:g} or more" if self.least >= 1 or self.least == 0 else "more than 0"

    def require(self, value: float, name: str) -> None:
        """Raises SettingError, naming the argument, if `value` is outside the range or NaN."""
        if not self.least <= value <= self.most:
            raise SettingError(name, f"must be from {self.least:,} to {self.most:,}, not {value!s:.30}")


BATCH_SIZE = Range(1, 1_000_000)
SEED = Range(0, 2**63 - 1)

IMAGE_SIZE_MULTIPLE = 16
"""The side of the model's images must be a multiple of this number: the encoder halves it four times."""

IMAGE_SIZE = Range(IMAGE_SIZE_MULTIPLE, 4096)
"""The side of the model's images in pixels."""

LoaderKind = Literal["auto", "dali", "host", "resident"]
"""How batches are made; see the module `fastae.data.loaders.choose`."""

LATENT = Range(1, 2**20)
"""The number of features in the latent code."""

CROP = Range(1, 65_500)
"""The side in pixels of the square that is cut out of an image."""

THREADS = Range(1, 256)
SHARE = Range(0, 1)


def require_int(value: object, name: str, within: Range) -> int:
    """Returns `value` as an int. Raises unless it is an integer of Python or NumPy within the range."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise SettingError(name, f"must be an integer, not {value!r:.60}") from None
    within.require(number, name)
    return number


def require_number(value: object, name: str, within: Range) -> None:
    """Raises unless `value` is an integer or a float, of Python or NumPy, within the range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SettingError(name, f"must be a number, not {value!r:.60}")
    within.require(float(value), name)


def require_type(value: object, name: str, *kinds: type) -> None:
    """Raises unless `value` is an instance of one of these classes."""
    if not isinstance(value, kinds):
        words = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise SettingError(name, f"must be {words}, not {value!r:.60}")


def require_choice(value: object, name: str, choices: Collection[str]) -> None:
    """Raises unless `value` is one of these words."""
    if not isinstance(value, str) or value not in choices:
        raise SettingError(name, f"{value!r:.60} is not one of: {', '.join(choices)}")


def require_image_size(value: object) -> int:
    """Returns `value` as an int. Raises unless it is a side, in pixels, of images that the model can take."""
    size = require_int(value, "image_size", IMAGE_SIZE)
    if size % IMAGE_SIZE_MULTIPLE:
        raise SettingError("image_size", f"must be a multiple of {IMAGE_SIZE_MULTIPLE}, not {size}")
    return size
