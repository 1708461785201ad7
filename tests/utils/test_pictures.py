"""Grids of originals over reconstructions."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.utils.pictures import GAP, MARGIN, TITLE, pairs, sample_sheet, save_png

SIDE = 4
CELL = SIDE + GAP


@pytest.mark.parametrize(("number", "columns", "rows"), [(8, 8, 1), (3, 3, 1), (15, 8, 2), (9, 8, 2)])
def test_originals_are_drawn_above_their_reconstructions(number, columns, rows, tmp_path):
    shades = torch.linspace(0, 0.9, number)
    originals = shades[:, None, None, None].expand(number, 3, SIDE, SIDE)
    picture = pairs(originals, 1 - originals)
    assert picture.shape == (2 * rows * CELL, columns * CELL, 3) and picture.dtype == np.uint8
    for index, shade in enumerate(shades.tolist()):
        top, left = 2 * (index // 8) * CELL, (index % 8) * CELL
        assert abs(int(picture[top, left, 0]) - 255 * shade) <= 0.51
        assert abs(int(picture[top + CELL, left, 0]) - 255 * (1 - shade)) <= 0.51
    if number % columns:
        assert (picture[-CELL:, (number % columns) * CELL :] == 255).all()
    save_png(picture, tmp_path / "grid.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture)


def test_a_sample_sheet_carries_its_iteration_and_the_names_of_its_rows():
    images = torch.rand(8, 3, 32, 32)
    one, other = (sample_sheet(images, images, iteration) for iteration in (1000, 2000))
    assert (one[:TITLE] != other[:TITLE]).any() and np.array_equal(one[TITLE:], other[TITLE:])
    assert np.array_equal(one[TITLE:, MARGIN:], pairs(images, images))
    labels = one[TITLE:, :MARGIN].reshape(2, 32 + GAP, MARGIN, 3)
    assert all((label < 128).any() for label in labels) and (labels[0] != labels[1]).any()
    assert (one[:, MARGIN - 4 : MARGIN] == 255).all(), "a name reaches into the images"
