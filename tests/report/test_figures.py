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
from fastae.report.figures import HUES, POINTS, draw_curves, draw_strip, short, smooth, thin
from fastae.report.quality import Row
from fastae.report.runs import Series


def series(*values):
    return Series(np.arange(1, len(values) + 1), np.array(values, float))


def texts(svg):
    root = ElementTree.fromstring(svg)
    return {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.parametrize("smoothing", [0, 0.95])
def test_a_figure_names_each_loss_once_in_text_and_no_address(smoothing):
    drawn = [(loss, series(9, 5, 4)) for loss in (*LOSSES, "pixel_mse")]
    svg = draw_curves(drawn, smoothing)
    assert set(LOSSES) | {"iteration"} <= texts(svg)
    assert svg.count(b">pixel_mse<") == 1 and all(hue.encode() in svg for hue in HUES.values())
    assert set(svg.decode().split("http")[1:]) <= {
        part for part in svg.decode().split("http")[1:] if part.startswith("://www.w3.org/")
    }


def test_the_same_figure_is_the_same_file():
    drawn = [("sample_bce", series(3, 2, 1))]
    assert draw_curves(drawn) == draw_curves(drawn)


@pytest.mark.parametrize(
    "values", [(math.nan, 5, math.inf, 3), (4, 3, math.nan), (7,), (0, 0, 0), (1e30, 1e-30), (-1, 2), ()]
)
@pytest.mark.parametrize("smoothing", [0, 0.95])
def test_values_that_are_no_number_or_none_to_speak_of_are_survived(values, smoothing):
    assert "iteration" in texts(draw_curves([("sample_bce", series(*values))], smoothing))


def test_a_long_curve_is_thinned_to_its_extremes():
    values = np.random.default_rng(0).random(10_000)
    values[1234], values[7000] = 5, -5
    thinned = thin(Series(np.arange(10_000), values))
    assert len(thinned) <= 2 * POINTS
    assert (thinned.values.max(), thinned.values.min()) == (5, -5)
    assert (np.diff(thinned.steps) > 0).all()


def test_numbers_are_short():
    assert [short(value).replace("\xa0", " ") for value in (0, 950, 1234, 999_999, 1_234_567)] == [
        "0", "950", "1.23 k", "1 M", "1.23 M",
    ]  # fmt: skip


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (48, 144), (128, 128), (256, 256)])
def test_an_image_is_shown_at_128_pixels_at_least(side, shown):
    pictures = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), np.uint8)
    strip = np.asarray(Image.open(io.BytesIO(draw_strip(Row("a", pictures, np.zeros(1))))))
    assert strip.shape == (shown, 2 * (shown + 4), 4)
    assert np.array_equal(strip[:: shown // side, 2 : shown + 2 : shown // side, :3], pictures[0])


def test_smoothing_starts_at_the_first_value_and_forgets_by_the_weight():
    # By hand: 10; (0.95 * 0.5 + 0.05 * 20) / (1 - 0.95^2); ...
    assert smooth(np.array([10.0, 20.0, 40.0])) == pytest.approx([10, 15.128205, 23.847502], abs=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_smoothing_is_the_weighted_mean_that_tensorboard_shows(values, weight):
    smoothed = smooth(np.array(values), weight)
    for place in range(len(values)):
        weights = weight ** np.arange(place, -1, -1.0)
        expected = np.average(values[: place + 1], weights=weights)
        assert smoothed[place] == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_a_constant_series_is_left_alone():
    assert smooth(np.full(5, 0.1)).tolist() == [0.1] * 5
    assert len(smooth(np.array([]))) == 0


def test_what_is_no_number_is_passed_over_and_not_averaged():
    smoothed = smooth(np.array([10.0, math.nan, 20.0, math.inf]))
    assert math.isnan(smoothed[1]) and math.isinf(smoothed[3])
    assert smoothed[[0, 2]] == pytest.approx(smooth(np.array([10.0, 20.0])))
