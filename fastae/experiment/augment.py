"""The color formulas of `tf.image`, for any array library: brightness, then contrast, then saturation.

    brightness   x + d
    contrast     (x - m) f + m            m: the mean of each channel over the image
    saturation   v - (v - x) k            v, n: largest and smallest channel of the pixel,
                 k = max(min(v / max(v - n, 1e-8), f), 0)

Pixels are float in [0, 1], and are clipped once, at the end. Brightness and contrast are
computed as one multiply-add, x f + (m (1 - f) + d), and the saturation as x k + v (1 - k): fewer passes over
the pixels. The saturation formula is `tf.image.adjust_saturation` with the conversion to HSV and back
multiplied out (they agree to 6e-7). As in TensorFlow, it alters an image even at f = 1 if brightness has made
pixels negative.

`color_jitter` takes the array library as an argument, so that DALI's graph (`fastae.data.loaders.pipeline`),
PyTorch on a GPU (`fastae.data.loaders.pixel_ops`) and the benchmark's peers run the same lines. On a CPU,
`fastae.data.loaders.kernel` has the formulas for one pixel.

Another random change is a range in `Augmentation` and a field at the end of `AugmentParams`. All loaders then
draw and carry it. Its operation is written in PyTorch, in DALI's graph, and in the CPU's kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

from fastae.utils.arguments import SHARE, require_number

EPSILON = 1e-8

UNIT = 1 / 255
"""The factor that converts values in [0, 255] to [0, 1]."""


class AugmentParams(NamedTuple):
    """The random changes of images, by name: arrays of NumPy or PyTorch, or nodes of DALI's graph.

    The numbers of a seed are drawn field by field. So a new field stands last, and is float32.
    """

    flip: Any
    """Whether an image is flipped left-right, bool."""

    brightness: Any
    """The number that is added to pixels in [0, 1], float32."""

    contrast: Any
    """The factor of the contrast, float32."""

    saturation: Any
    """The factor of the saturation, float32."""

    def map(self, function: Callable[[Any], Any]) -> AugmentParams:
        """Applies a function to each field."""
        return AugmentParams(*map(function, self))

    @classmethod
    def joined(cls, batches: Iterable[AugmentParams]) -> AugmentParams:
        """Concatenates the changes of several batches."""
        import numpy as np  # here, because `fastae --help` imports this module

        return cls(*map(np.concatenate, zip(*batches, strict=True)))


@dataclass(frozen=True)
class Augmentation:
    """The ranges of the random color changes, which are drawn uniformly. Each is from 0 to 1.

    The article does not state its ranges; the defaults are fastae's.
    """

    brightness: float = 0.125
    """A number within +- this value is added to pixels in [0, 1]."""

    contrast: float = 0.2
    """The contrast factor is within 1 +- this value."""

    saturation: float = 0.2
    """The saturation factor is within 1 +- this value."""

    def __post_init__(self) -> None:
        for field in fields(self):
            require_number(getattr(self, field.name), field.name, SHARE)

    def params(self, uniform: Any) -> AugmentParams:
        """Converts uniform random numbers, float64 (fields, N) in [0, 1) of NumPy, to changes (N,)."""
        drawn = AugmentParams(*uniform)
        return AugmentParams(
            flip=drawn.flip < 0.5,
            brightness=_scaled(drawn.brightness, 0.0, self.brightness),
            contrast=_scaled(drawn.contrast, 1.0, self.contrast),
            saturation=_scaled(drawn.saturation, 1.0, self.saturation),
        )


def _scaled(uniform: Any, centre: float, radius: float) -> Any:
    return (centre + radius * (2 * uniform - 1)).astype("float32")


NO_COLORS = Augmentation(**dict.fromkeys(Augmentation.__dataclass_fields__, 0))
"""No color changes."""


class Arrays(Protocol):
    """The functions of an array library that the formulas need besides + - * /.

    Channels are a sequence of arrays, or a sequence of one array with all channels.
    """

    def highest(self, channels: Sequence[Any]) -> Any: ...
    def lowest(self, channels: Sequence[Any]) -> Any: ...
    def maximum(self, x: Any, y: float) -> Any: ...
    def clamp(self, x: Any, low: float, high: Any) -> Any: ...


def color_jitter(
    channels: Sequence[Any], means: Sequence[Any], params: AugmentParams, arrays: Arrays
) -> list[Any]:
    """Applies brightness, contrast, saturation and the final clip to images.

    Args:
        channels: the images' red, green and blue as float arrays in [0, 255], or one array with all three.
        means: the mean of each channel over the pixels of an image, in [0, 255].
        params: the changes. Brightness, contrast and saturation broadcast with the channels.
        arrays: the functions of the array library.

    Returns:
        Arrays like `channels`, in [0, 1].
    """
    factor, pull = params.contrast * UNIT, (1.0 - params.contrast) * UNIT
    shifted = [
        x * factor + (mean * pull + params.brightness) for x, mean in zip(channels, means, strict=True)
    ]
    value = arrays.highest(shifted)
    spread = arrays.maximum(value - arrays.lowest(shifted), EPSILON)
    scale = arrays.clamp(value / spread, 0.0, params.saturation)
    gray = value * (1.0 - scale)
    return [arrays.clamp(x * scale + gray, 0.0, 1.0) for x in shifted]
