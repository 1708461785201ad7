"""The article's data path in NumPy and Pillow, written from `tf.image` and independent of fastae.

Pillow decodes. Resizing is TensorFlow's default (bilinear, half-pixel centres, no antialiasing). Colors
follow TensorFlow's kernels, with the saturation changed in HSV. All arithmetic is in float64.
"""

import numpy as np
from PIL import Image


def decode(path):
    """Returns the pixels of a file: uint8 (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))


def cut_out(image, crop=None):
    height, width = image.shape[:2]
    side = crop or min(height, width)
    # If a margin is odd, the square is nearer to the end, as in DALI's crop.
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]


def resize(image, sizes):
    """Resizes an image to (height, width), or to a square."""
    for axis, size in enumerate(np.broadcast_to(sizes, 2)):
        length = image.shape[axis]
        centres = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(centres).astype(int)
        share = (centres - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        first = image.take(np.clip(low, 0, length - 1), axis).astype(np.float64)
        second = image.take(np.clip(low + 1, 0, length - 1), axis).astype(np.float64)
        image = first * (1 - share) + second * share
    return image


def adjust_saturation(rgb, factor):
    """Equals tf.image.adjust_saturation: in HSV, multiplies S by the factor and clips it to [0, 1]."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = high - low
    safe_high, safe_spread = np.where(high > 0, high, 1), np.where(spread > 0, spread, 1)
    saturation = np.where(high > 0, spread / safe_high, 0)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / safe_spread, (blue - red) / safe_spread + 2],
        (red - green) / safe_spread + 4,
    )
    hue = np.where(spread > 0, hue, 0)
    chroma = np.clip(saturation * factor, 0, 1) * high

    def channel(shift):
        distance = (shift + hue) % 6
        return high - chroma * np.clip(np.minimum(distance, 4 - distance), 0, 1)

    return np.stack([channel(5), channel(3), channel(1)], axis=-1)


def augment(image, flip, brightness, contrast, saturation):
    """(S, S, 3) in [0, 255] -> [0, 1], with tf.image's formulas in the article's order."""
    x = (image[:, ::-1] if flip else image) / 255
    x = x + brightness
    mean = x.mean((0, 1), keepdims=True)
    x = (x - mean) * contrast + mean
    return np.clip(adjust_saturation(x, saturation), 0, 1)


def batch(paths, params, size=128, crop=None):
    """Returns the batch with these parameters: float64 (N, 3, S, S) in [0, 1]."""
    images = [
        augment(
            resize(cut_out(decode(paths[index]), crop), size),
            params.augment.flip[row],
            float(params.augment.brightness[row]),
            float(params.augment.contrast[row]),
            float(params.augment.saturation[row]),
        )
        for row, index in enumerate(params.indices)
    ]
    return np.stack(images).transpose(0, 3, 1, 2)
