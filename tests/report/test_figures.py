"""Figures: well-formed, without addresses, in both themes; labels that do not lie on each other."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastae.report.curves import Series
from fastae.report.figures import (
    DARK,
    LIGHT,
    STRETCHES,
    Curve,
    draw_bars,
    draw_curves,
    short,
    spread_out,
    thin,
)


def series(*values):
    return Series(np.arange(1, len(values) + 1), np.array(values, float))


def texts(svg):
    ElementTree.fromstring(svg)
    return svg.decode()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_figure_names_each_loss_in_text_and_no_address(theme, log):
    drawn = [
        Curve("minibatch_bce", "minibatch bce", series(9, 5, 4)),
        Curve("pixel_mse", "pixel mse", series(9, 4, 3)),
    ]
    svg = texts(draw_curves(drawn, theme, y="squared error", log=log, smoothing=0.95))
    assert ">minibatch bce<" in svg and ">pixel mse<" in svg and ">iteration<" in svg
    assert theme.hues["minibatch"] in svg and theme.hues["pixel"] in svg
    for address in ("http://", "https://"):
        assert (
            svg.replace("http://www.w3.org/2000/svg", "")
            .replace("http://www.w3.org/1999/xlink", "")
            .count(address)
            == 0
        )


def test_the_same_figure_is_the_same_file():
    drawn = [Curve("sample_bce", "sample bce", series(3, 2, 1))]
    assert draw_curves(drawn, LIGHT, y="error") == draw_curves(drawn, LIGHT, y="error")


@pytest.mark.parametrize("values", [(math.nan, 5, math.inf, 3), (4, 3, math.nan), (7,), (0, 0, 0)])
@pytest.mark.parametrize("log", [False, True])
def test_values_that_are_no_number_or_none_to_speak_of_are_survived(values, log):
    drawn = [Curve("sample_bce", "sample bce", series(*values))]
    for smoothing in (0, 0.95):
        assert "sample bce" in texts(draw_curves(drawn, LIGHT, y="error", log=log, smoothing=smoothing))


def test_a_name_from_outside_is_escaped():
    svg = texts(draw_bars(["<script>alert(1)</script>"], {"steps": [1.0]}, LIGHT, x="share"))
    assert "<script" not in svg and "&lt;script&gt;" in svg


def test_a_long_curve_is_thinned_to_its_extremes():
    values = np.random.default_rng(0).random(10_000)
    values[1234], values[7000] = 5, -5
    thinned = thin(Series(np.arange(10_000), values))
    assert len(thinned) <= 2 * STRETCHES
    assert (thinned.values.max(), thinned.values.min()) == (5, -5)
    assert (np.diff(thinned.steps) > 0).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_labels_keep_their_order_and_their_distance(heights):
    moved = spread_out(heights, 0.1, 0.0, 1.0)
    order = np.argsort(heights, kind="stable")
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in moved)
    assert (np.diff(np.array(moved)[order]) >= 0.1 - 1e-9).all()


def test_labels_that_have_room_stay_where_they_are():
    assert spread_out([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_out([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])


def test_numbers_are_short():
    assert [short(value).replace("\xa0", " ") for value in (0, 950, 1234, 999_999, 1_234_567)] == [
        "0", "950", "1.23 k", "1 M", "1.23 M",
    ]  # fmt: skip
