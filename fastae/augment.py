"""The color formulas of `tf.image`, written once: brightness, then contrast, then saturation.

    brightness   x + d
    contrast     (x - m) f + m            m: the mean of each channel over the image
    saturation   v - (v - x) k            v, n: largest and smallest channel of the pixel,
                 k = max(min(v / max(v - n, 1e-8), f), 0)

Pixels are float in [0, 1]; nothing is clipped in between, and once at the end. Brightness and contrast are
computed as one multiply-add, x f + (m (1 - f) + d), and the saturation as x k + v (1 - k): fewer passes over
the pixels. The saturation formula is `tf.image.adjust_saturation` with its detour through HSV multiplied out
(equal to 6e-7): where brightness has made pixels negative it alters the image even at f = 1, as TensorFlow's
does.

`color_jitter` takes the array library as an argument, so that DALI's graph (`fastae.data.loaders.pipeline`),
PyTorch (`fastae.data.loaders.pixel_ops`) and the benchmark's peers run the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from fastae.utils.arguments import SHARE, require_number

EPSILON = 1e-8

UNIT = 1 / 255


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes of color, from 0 to 1 each; numbers are drawn uniformly.

    The article states no ranges; these defaults are this project's.
    """

    brightness: float = 0.125
    """A number within +- this is added to pixels in [0, 1]."""

    contrast: float = 0.2
    """The factor of the contrast is within 1 +- this."""

    saturation: float = 0.2
    """The factor of the saturation is within 1 +- this."""

    def __post_init__(self) -> None:
        for field in fields(self):
            require_number(getattr(self, field.name), field.name, SHARE)


NO_COLORS = Augmentation(0, 0, 0)
"""Pixels stay as they are."""


class Arrays(Protocol):
    """What the formulas need beside + - * /. Channels come as a sequence, or as one array of all."""

    def highest(self, channels: Sequence[Any]) -> Any: ...
    def lowest(self, channels: Sequence[Any]) -> Any: ...
    def maximum(self, x: Any, y: float) -> Any: ...
    def clamp(self, x: Any, low: float, high: Any) -> Any: ...


def color_jitter(
    channels: Sequence[Any],
    means: Sequence[Any],
    brightness: Any,
    contrast: Any,
    saturation: Any,
    *,
    arrays: Arrays,
) -> list[Any]:
    """Brightness, contrast, saturation and the final clip of images: float in [0, 255] -> [0, 1].

    channels: arrays that make up the images together: red, green, blue, or one that holds all three.
    means: of each, over the pixels of an image, in [0, 255]. The parameters broadcast against both.
    """
    factor, pull = contrast * UNIT, (1.0 - contrast) * UNIT
    shifted = [x * factor + (mean * pull + brightness) for x, mean in zip(channels, means, strict=True)]
    value = arrays.highest(shifted)
    spread = arrays.maximum(value - arrays.lowest(shifted), EPSILON)
    scale = arrays.clamp(value / spread, 0.0, saturation)
    gray = value * (1.0 - scale)
    return [arrays.clamp(x * scale + gray, 0.0, 1.0) for x in shifted]
