"""What a loader is measured on: which images, with how many workers, for which device, at which size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fastae.data.loaders.sampler import Sampler

SIZE = 128
"""The side of the images in pixels."""


class Task(NamedTuple):
    """What a loader reads, and with what."""

    paths: Sequence[str]

    sampler: Sampler
    """Its images are those of `paths`."""

    workers: int
    """The number of worker processes or threads."""

    scratch: Path
    """An empty folder."""

    device: str
    """cpu or cuda: where the batches are needed. Whoever measures uploads the batches that are on the CPU."""


def shrink(path: str) -> Image.Image:
    """Loads an image, cuts out the central square and resizes it to 128x128."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = ((length - side + 1) // 2 for length in image.size)
    scale = side / SIZE
    # An affine transform interpolates between pixels like TensorFlow. Pillow's resize always filters.
    return image.transform(
        (SIZE, SIZE),
        Image.Transform.AFFINE,
        (scale, 0, left, 0, scale, top),
        Image.Resampling.BILINEAR,
    )
