r"""Makes batches from decoded images on a CPU: resize, flip, brightness, contrast, saturation, output format.

    crops uint8 (height, width, 3) -> `augment_crops`  \
    images (M, H, 3, W)            -> `augment_images`  -> (N, H, 3 W) in the output's format
    crops uint8 (height, width, 3) -> `resize_crops`   -> float32 (N, H, 3, W) in [0, 255]

numba compiles the functions. They take one image after the other through all operations, so that it stays in
the cache of one core, and release the interpreter lock, so that threads make several batches at once. Without
`fastmath`, each operation is rounded as IEEE 754 says. So the results depend neither on the CPU nor on the
width of its vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba.core import event, types
from numba.extending import intrinsic, overload

from fastae.experiment import augment
from fastae.utils.console import log

# A constant of Python would be float64, and all that it is combined with.
UNIT, EPSILON = np.float32(augment.UNIT), np.float32(augment.EPSILON)
ZERO, HALF, ONE, HIGHEST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(255)

NEXT = np.uintp(1)  # an index that may be negative would be tested

ROUNDING = np.float32(1 << 23)
"""The sum of this number and one in [0, 2^22] is rounded to an integer, which its last bits are."""


# With numba's own error model, each division would be tested for zero, and loops would not be vectorised.
_compiled = numba.njit(error_model="numpy")


def _kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compiles a function when it is first called. Later processes read the code from numba's cache."""
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        compiled = numba.njit(**options)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        try:
            compiled(*arguments)
        except OSError:  # the code is compiled, but could not be saved: the disk is full
            compiled(*arguments)

    return call


@_kernel
def augment_crops(crops: np.ndarray, changes: np.ndarray, norm: np.ndarray, out: np.ndarray) -> None:
    """Resizes, flips and augments crops.

    Args:
        crops: the address, height and width of each crop uint8 (height, width, 3): int64 (N, 3).
        changes: flip (0 or 1), brightness, contrast and saturation of each image, float32 (N, 4).
        norm: the mean and 1 / std of each channel, for images in [0, 1]: float32 (2, 3).
        out: gets the images, (N, H, 3 W): float32; uint8; uint16 and int16 for the bits of bfloat16 and
            float16.
    """
    image = np.empty((out.shape[1], 3, out.shape[2] // 3), np.float32)
    for index in range(len(out)):
        _resize(_pixels(crops[index]), changes[index, 0] > ZERO, image)
        _finish(image, _channel_means(image), changes[index], norm, out[index])


@_kernel
def augment_images(
    images: np.ndarray,
    means: np.ndarray,
    indices: np.ndarray,
    changes: np.ndarray,
    norm: np.ndarray,
    out: np.ndarray,
) -> None:
    """Flips and augments some of the images (M, H, 3, W) in [0, 255], uint8 or float32.

    Args:
        images: the images.
        means: the channel means of each, float32 (M, 3).
        indices: which images, int64 (N,).
        changes: as the following, see `augment_crops`.
    """
    image = np.empty(images.shape[1:], np.float32)
    for index in range(len(out)):
        _load(images[indices[index]], changes[index, 0] > ZERO, image)
        _finish(image, means[indices[index]], changes[index], norm, out[index])


@_kernel
def resize_crops(crops: np.ndarray, out: np.ndarray) -> None:
    """Resizes crops, as in `augment_crops`, to float32 (N, H, 3, W) in [0, 255]."""
    for index in range(len(out)):
        _resize(_pixels(crops[index]), False, out[index])


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Converts an address to a pointer: numba would copy a list of arrays."""
    pointer = types.CPointer(types.uint8)

    def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(types.int64), code


@_compiled
def _pixels(crop: np.ndarray) -> np.ndarray:
    """The pixels of a crop, uint8 (height, 3 width)."""
    return numba.carray(_pointer(crop[0]), (crop[1], 3 * crop[2]))  # type: ignore[call-arg]


@_compiled
def _resize(crop: np.ndarray, flip: bool, image: np.ndarray) -> None:
    """Resizes a crop (height, 3 width), vertically and then horizontally, to (H, 3, W)."""
    above, below, vertical = _taps(len(crop), len(image), 1, False)
    left, right, horizontal = _taps(crop.shape[1] // 3, image.shape[2], 3, flip)
    row = np.empty(crop.shape[1], np.float32)
    for y in range(len(image)):
        upper, lower, weight = crop[above[y]], crop[below[y]], vertical[y]
        for x in range(len(row)):
            row[x] = np.float32(upper[x]) + (np.float32(lower[x]) - np.float32(upper[x])) * weight
        red, green, blue = image[y, 0], image[y, 1], image[y, 2]
        for x in range(len(red)):
            start, end, weight = left[x], right[x], horizontal[x]
            red[x] = row[start] + (row[end] - row[start]) * weight
            start, end = start + NEXT, end + NEXT
            green[x] = row[start] + (row[end] - row[start]) * weight
            start, end = start + NEXT, end + NEXT
            blue[x] = row[start] + (row[end] - row[start]) * weight


@_compiled
def _taps(side: int, size: int, stride: int, flip: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear sampling of `side` pixels at `size` positions, with half-pixel centres.

    This is the resize of `tf.image` and DALI. For each position: the index of the first and of the second
    neighbour, and the weight of the second. If `flip`, the positions are in reverse order.
    """
    low, high = np.empty(size, np.uintp), np.empty(size, np.uintp)
    weight = np.empty(size, np.float32)
    for index in range(size):
        centre = min(max((index + 0.5) * side / size - 0.5, 0.0), side - 1.0)
        position = size - 1 - index if flip else index
        low[position] = int(centre) * stride
        high[position] = min(int(centre) + 1, side - 1) * stride
        weight[position] = np.float32(centre - int(centre))
    return low, high, weight


@_compiled
def _channel_means(image: np.ndarray) -> np.ndarray:
    """The mean of each channel, (H, 3, W) -> (3,). Columns are summed first, many at once but in order."""
    sums = np.zeros(image.shape[1] * image.shape[2], np.float32)
    for y in range(len(image)):
        row = image[y].reshape(-1)
        for x in range(len(sums)):
            sums[x] += row[x]
    means = np.empty(3, np.float32)
    for channel in range(3):
        total = 0.0
        for value in sums.reshape(3, -1)[channel]:
            total += value
        means[channel] = np.float32(total / (len(image) * image.shape[2]))
    return means


@_compiled
def _load(stored: np.ndarray, flip: bool, image: np.ndarray) -> None:
    """Copies an image (H, 3, W), flipped or not."""
    width = image.shape[2]
    for y in range(len(image)):
        for channel in range(3):
            source, plane = stored[y, channel], image[y, channel]
            if flip:
                for x in range(width - 1, -1, -1):  # in this direction, LLVM vectorises the loop
                    plane[width - 1 - x] = np.float32(source[x])
            else:
                for x in range(width):
                    plane[x] = np.float32(source[x])


@_compiled
def _finish(
    image: np.ndarray, means: np.ndarray, changes: np.ndarray, norm: np.ndarray, out: np.ndarray
) -> None:
    """`fastae.experiment.augment.color_jitter`, normalization, and the output's format.

    The image (H, 3, W) is in [0, 255], like its channel `means`.
    """
    _, brightness, contrast, saturation = changes
    factor, pull = contrast * UNIT, (ONE - contrast) * UNIT
    red_shift, green_shift, blue_shift = means * pull + brightness
    (red_mean, green_mean, blue_mean), (red_scale, green_scale, blue_scale) = norm
    row = np.empty(out.shape[1], np.float32)
    bits = row.view(np.uint32)
    for y in range(len(image)):
        red, green, blue = image[y, 0], image[y, 1], image[y, 2]
        for x in range(len(red)):
            r, g, b = (
                red[x] * factor + red_shift,
                green[x] * factor + green_shift,
                blue[x] * factor + blue_shift,
            )
            value = max(r, max(g, b))
            spread = max(value - min(r, min(g, b)), EPSILON)
            scale = max(min(value / spread, saturation), ZERO)
            gray = value * (ONE - scale)
            row[3 * x] = (max(min(r * scale + gray, ONE), ZERO) - red_mean) * red_scale
            row[3 * x + 1] = (max(min(g * scale + gray, ONE), ZERO) - green_mean) * green_scale
            row[3 * x + 2] = (max(min(b * scale + gray, ONE), ZERO) - blue_mean) * blue_scale
        _write(row, bits, out[y])


def _write(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """Converts a row, which `bits` also holds as uint32, to the type of `out`. It may overwrite the row."""
    raise NotImplementedError  # numba calls one of the functions below


@overload(_write)
def _write_as(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> Any:
    writers: dict[Any, Any] = {
        types.float32: _copy, types.uint8: _round, types.uint16: _bfloat16, types.int16: _float16
    }  # fmt: skip
    return writers[out.dtype]


def _copy(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    for x in range(len(row)):
        out[x] = row[x]


def _round(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    for x in range(len(row)):
        row[x] = row[x] * HIGHEST + ROUNDING
    for x in range(len(row)):
        out[x] = np.uint8(bits[x])


def _bfloat16(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """Rounds to nearest, ties to even. numba has no bfloat16, and no float16 on a CPU."""
    for x in range(len(row)):
        odd = (bits[x] >> np.uint32(16)) & np.uint32(1)
        out[x] = np.uint16((bits[x] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def _float16(row: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """Rounds to nearest, ties to even. The second and third loop are for numbers below 2^-14."""
    for x in range(len(row)):
        size = min(bits[x] & np.uint32(0x7FFFFFFF), np.uint32(0x47800000))  # at most 2^16, which is infinite
        odd = (size >> np.uint32(13)) & np.uint32(1)
        half = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        out[x] = np.int16((half & np.uint32(0x7FFF)) | ((bits[x] >> np.uint32(16)) & np.uint32(0x8000)))
    for x in range(len(row)):
        row[x] = abs(row[x]) + HALF
    for x in range(len(row)):
        if row[x] < HALF + np.float32(2.0**-14):
            out[x] = (out[x] & np.int16(-0x8000)) | np.int16(bits[x] - np.uint32(0x3F000000))


class _CompileNotice(event.Listener):
    """Logs once if batches wait for a compilation."""

    has_logged = False

    def on_start(self, event: event.Event) -> None:
        if not self.has_logged and event.data["dispatcher"].py_func.__module__ == __name__:
            log("compiling the loader's kernel for this machine: the first batch takes some seconds")
            self.has_logged = True

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _CompileNotice())
