"""JPEGs and PNGs of every kind that training accepts are decoded as Pillow decodes them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastae.data import CropResize, load_images
from fastae.data.files import png
from fastae.utils.pictures import to_bytes

from .bad_files import png_chunk

SIDE = 110


def interlaced(image):
    """Returns an interlaced PNG, which Pillow reads but does not write."""
    pixels, data = np.asarray(image.convert("RGB")), b""
    for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        data += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::across])
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return png.START + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_every_kind_is_upright_rgb_without_its_transparency(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (37, 52, 3), np.uint8)
    photo = Image.fromarray(noise.repeat(3, 0).repeat(3, 1)[:SIDE, :153])  # with an even and an odd side
    alpha = Image.linear_gradient("L").resize(photo.size)
    kinds = {
        "jpg": [(photo, {}), (photo, {"progressive": True}), (photo.convert("L"), {})],
        "png": [
            (photo, {}), (photo.convert("L"), {}), (photo.convert("1"), {}), (photo.quantize(99), {}),
            (photo.quantize(9), {"transparency": bytes(range(9))}),
            (Image.merge("RGBA", (*photo.split(), alpha)), {}), (Image.merge("LA", (alpha, alpha)), {}),
        ],
    }[suffix]  # fmt: skip
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds.append((photo, {"exif": exif}))
    paths = [str(tmp_path / f"{index}.{suffix}") for index in range(len(kinds))]
    for (image, options), path in zip(kinds, paths, strict=True):
        image.save(path, **options)
    if suffix == "png":
        paths.append(str(tmp_path / "interlaced.png"))
        Path(paths[-1]).write_bytes(interlaced(photo))
    decoded = to_bytes(load_images(paths, CropResize(SIDE, SIDE), "cpu"))
    for path, ours in zip(paths, decoded, strict=True):
        upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        left, top = (upright.width - SIDE + 1) // 2, (upright.height - SIDE + 1) // 2
        assert np.array_equal(ours, upright.crop((left, top, left + SIDE, top + SIDE))), path
