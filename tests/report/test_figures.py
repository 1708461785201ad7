"""Figures: well-formed, without addresses, with the losses' names in text; TensorBoard's smoothing."""

import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastae.losses import LOSSES
from fastae.report.figures import HUES, draw_curves, draw_strips, short, smooth
from fastae.report.runs import Series


def series(*values):
    return Series(np.arange(1, len(values) + 1), np.array(values, float))


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_figure_names_each_loss_once_in_text_and_no_address():
    drawn = [(loss, series(9, 5, 4)) for loss in (*LOSSES, "pixel_mse")]
    svg = draw_curves(drawn, 0.95)
    assert svg == draw_curves(drawn, 0.95), "the same figure is the same file"
    assert {*LOSSES, "iteration"} <= set(texts(svg)) and texts(svg).count("pixel_mse") == 1
    assert all(hue.encode() in svg for hue in HUES.values())
    assert all(part.startswith("://www.w3.org/") for part in svg.decode().split("http")[1:])


@pytest.mark.parametrize(
    "values", [(math.nan, 5, math.inf, 3), (4, 3, math.nan), (7,), (0, 0, 0), (1e30, 1e-30), (-1, 2), ()]
)
def test_any_values_are_drawn(values):
    for smoothing in (0, 0.95):
        assert "iteration" in texts(draw_curves([("sample_bce", series(*values))], smoothing))


def test_a_long_curve_is_a_small_figure():
    noise = np.random.default_rng(0).random(100_000) + 1
    assert len(draw_curves([("sample_bce", series(*noise))], 0.95)) < 200_000


def test_numbers_are_short():
    assert [short(value).replace("\xa0", " ") for value in (0, 950, 1234, 999_999, 1_234_567)] == [
        "0", "950", "1.23 k", "1 M", "1.23 M",
    ]  # fmt: skip


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (48, 144), (128, 128), (256, 256)])
def test_an_image_is_shown_at_128_pixels_at_least(side, shown):
    pictures = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), np.uint8)
    strip = np.asarray(Image.open(io.BytesIO(draw_strips([pictures]))))
    assert strip.shape == (shown, 2 * (shown + 4), 4)
    assert np.array_equal(strip[:: shown // side, 2 : shown + 2 : shown // side, :3], pictures[0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_smoothing_is_the_weighted_mean_that_tensorboard_shows(values, weight):
    smoothed = smooth(np.array(values), weight)
    for place in range(len(values) if len(set(values)) > 1 else 0):
        weights = weight ** np.arange(place, -1, -1.0)
        expected = np.average(values[: place + 1], weights=weights)
        assert smoothed[place] == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_smoothing_leaves_constants_and_what_is_not_finite_alone():
    assert smooth(np.full(5, 0.1)).tolist() == [0.1] * 5 and len(smooth(np.array([]))) == 0
    smoothed = smooth(np.array([10.0, math.nan, 20.0, math.inf, 40.0]))
    # By hand: 10; (0.95 * 0.5 + 0.05 * 20) / (1 - 0.95^2); ...
    assert smoothed == pytest.approx([10, math.nan, 15.128205, math.inf, 23.847502], abs=1e-6, nan_ok=True)
