"""The colour formulas of `tf.image`, written once: brightness, then contrast, then saturation.

    brightness   x + d
    contrast     (x - m) f + m            m: the mean of each channel over the image
    saturation   v - (v - x) k            v, n: largest and smallest channel of the pixel,
                 k = max(min(v / max(v - n, 1e-8), f), 0)

Pixels are float in [0, 1]; nothing is clipped in between, and once at the end. The saturation formula
is `tf.image.adjust_saturation` with its detour through HSV multiplied out (equal to 6e-7): where
brightness has made pixels negative it alters the image even at f = 1, as TensorFlow's does.

`colour` takes the array library as an argument, so that DALI's graph (`fastae.data.pipeline`) and
PyTorch run the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

EPSILON = 1e-8


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes, each drawn uniformly; the left-right flip is always a fair coin.

    brightness: added to pixels in [0, 1], within +-brightness. contrast, saturation: factors within
    1 +- value. The article states no ranges; these defaults are this project's.
    """

    brightness: float = 0.125
    contrast: float = 0.2
    saturation: float = 0.2


class Arrays(Protocol):
    """The operations that the formulas need beside + - * /; images have channels and pixels."""

    def pixel_mean(self, x: Any) -> Any: ...
    def channel_max(self, x: Any) -> Any: ...
    def channel_min(self, x: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...


def colour(x: Any, brightness: Any, contrast: Any, saturation: Any, arrays: Arrays) -> Any:
    """Brightness, contrast, saturation and the final clip of images `x`, float in [0, 1].

    The parameters broadcast against the images: one number an image. Returns [0, 1].
    """
    x = x + brightness
    mean = arrays.pixel_mean(x)
    x = (x - mean) * contrast + mean
    value = arrays.channel_max(x)
    chroma = arrays.maximum(value - arrays.channel_min(x), EPSILON)
    scale = arrays.maximum(arrays.minimum(value / chroma, saturation), 0.0)
    x = value - (value - x) * scale
    return arrays.minimum(arrays.maximum(x, 0.0), 1.0)
