"""Figures are well-formed SVG without addresses, name the losses in text, and smooth as TensorBoard does."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from fastae.experiment.losses import ELEMENTS, LOSSES, REDUCTIONS, Element, Loss, Reduction
from fastae.report import figures
from fastae.report.analysis import analyse
from fastae.report.compare import compare, group_seeds
from fastae.report.forest import MARKERS, draw_forest
from fastae.report.runs import find_runs

from .made import REPOSITORY, make_run


def curve(loss, *seeds, label=None, weight=0.0):
    """Makes the curve of these values, one row for each seed."""
    values = np.array(seeds, float)
    return figures.Curve(LOSSES[loss], label or loss, np.arange(1, values.shape[1] + 1), values, weight)


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]


def height(svg):
    return float(ElementTree.fromstring(svg).get("viewBox").split()[3])


def test_a_figure_names_each_loss_once_in_text_and_no_address():
    drawn = [curve(loss, range(300, 1, -1), weight=0.9) for loss in LOSSES]
    svg = figures.draw_curves(drawn)
    assert svg == figures.draw_curves(drawn), "the same figure is the same file"
    assert {*LOSSES, "iteration"} <= set(texts(svg)) and texts(svg).count("pixel_mse") == 1
    assert all(look["color"].encode() in svg for look in figures.styles(drawn))
    assert all(part.startswith("://www.w3.org/") for part in svg.decode().split("http")[1:])


@pytest.mark.parametrize(
    "values", [(math.nan, 5, math.inf, 3), (4, 3, math.nan), (7,), (0, 0, 0), (1e30, 1e-30), (-1, 2), ()]
)
def test_any_values_are_drawn(values):
    drawn = [curve("sample_bce", values * 60, weight=0.5), curve("pixel_mse", values, values)]
    for curves in (drawn, drawn[1:]):
        assert "iteration" in texts(figures.draw_curves(curves))


def test_seeds_are_drawn_as_their_mean_in_a_band_at_common_iterations(tmp_path):
    make_run(tmp_path / "a", seed=1, held_out={0: 9e5, 50: 4e5, 75: 4e5, 100: 4e5})
    make_run(tmp_path / "b", seed=2, held_out={0: 9e5, 50: 8e5, 100: 2e5, 120: 1e5})
    (group,) = group_seeds(find_runs([tmp_path])[0])
    (seeds,) = figures._curves([group], lambda run: run.held_out)
    assert seeds.steps.tolist() == [0, 50, 100] and seeds.mean.tolist() == [9e5, 6e5, 3e5]
    assert seeds.since(50).steps.tolist() == [50, 100]
    chart = figures.draw_charts([group])[1]
    assert chart.svg.count(b'id="FillBetween') == 1


def test_curves_of_one_loss_are_named_and_no_two_look_alike():
    labels = [f"pixel_mse --lr {lr}" for lr in range(12)]
    svg = figures.draw_curves([curve("pixel_mse", (9, 5, 4), label=label) for label in labels])
    assert set(labels) <= set(texts(svg))
    looks = figures.styles([curve(loss, (9, 5)) for loss in ("pixel_mse", "pixel_bce") for _ in range(12)])
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 24


def own_curves(names, points=2):
    """Returns a curve for each reduction of some elements, in the order of reports.

    The elements are those of fastae's that have colors, and users' own.
    """
    colored = [element for element in ELEMENTS if element.shades]
    elements = [*colored, *(Element(name, name, lambda y, x: x - y) for name in names)]
    losses = [Loss(element, reduction) for reduction in REDUCTIONS for element in elements]
    return [figures.Curve(loss, loss.name, np.arange(points), np.ones((1, points))) for loss in losses]


@pytest.mark.parametrize(("count", "differs"), [(5, ["color"]), (20, ["color", "linestyle"])])
def test_elements_of_users_differ_in_color_and_if_there_are_many_in_dashes(count, differs):
    curves = own_curves([f"own_{index}" for index in range(count)])
    looks = [tuple(look[each] for each in differs) for look in figures.styles(curves)]
    assert len(set(looks)) == len(curves) >= 3 * count


def test_a_reduction_without_a_shade_is_drawn_in_a_further_color():
    median = Reduction("median", lambda elements: elements.median(), lambda shape: 1, width=2.0, marker="v")
    curves = [curve(loss, (9, 5)) for loss in LOSSES]
    curves += [replace(curves[0], loss=Loss(element, median)) for element in ELEMENTS]
    looks = [*figures.styles(curves)]
    assert [look["marker"] for look in looks[-2:]] == ["v", "v"]
    assert len({look["color"] for look in looks}) == len(curves)


@pytest.mark.parametrize("own", [(), ("own",), ("own", "other_own")])
@pytest.mark.parametrize("points", [1, 2, 3, 7, 13, 100])
def test_curves_that_coincide_are_told_apart_by_markers_at_different_points(points, own):
    curves = own_curves(own, points)
    marked = {}
    for drawn, look in zip(curves, figures.styles(curves), strict=True):
        first, distance = look["markevery"]
        marked.setdefault(drawn.loss.element.name, []).append(set(range(first, points, distance)))
    for marks in marked.values():
        assert len(marks) == 3 and all(marks)
        assert points < 3 or sum(map(len, marks)) == len(set.union(*marks))


def test_long_labels_are_broken_between_words_and_leave_room_for_the_curves():
    label = "pixel_mse --learning-rate 0.1 --batch-size 8 (folder $x$ of another name)"
    svg = figures.draw_curves([curve("pixel_mse", (2, 1), label=f"{n} {label}") for n in range(9)])
    lines = [text for text in texts(svg) if text and "--" in text]
    assert len(lines) == 9 and all(text.endswith("--batch-size 8 (folder $x$") for text in lines)
    assert texts(svg).count("of another name)") == 9
    assert height(svg) > height(figures.draw_curves([curve("pixel_mse", (2, 1))]))


@pytest.mark.parametrize(("points", "weight"), [(0, 0), (100, 0), (200, 0.5), (2000, 0.95), (10**6, 0.95)])
def test_smoothing_suits_the_number_of_points(points, weight):
    assert figures.smoothing_weight(points) == pytest.approx(weight)
    values = np.linspace(1, 0.5, points)
    # Smoothing lags behind by a hundredth of the curve, and this curve falls by 0.5.
    assert np.all(figures.smooth(values, weight) - values <= 0.5 / 100 + 1e-9)


def test_numbers_are_shown_in_three_digits():
    assert [figures.short(value) for value in (0, 950, 1234, 999_999, 1_234_567)] == [
        "0", "950", "1.23 k", "1 M", "1.23 M",
    ]  # fmt: skip


def test_smoothing_is_tensorboards_and_keeps_values_that_are_not_finite():
    smoothed = figures.smooth(np.array([10.0, math.nan, 20.0, math.inf, 40.0]), 0.95)
    # By hand: 10; (0.95 * 0.5 + 0.05 * 20) / (1 - 0.95^2); ...
    assert smoothed == pytest.approx([10, math.nan, 15.128205, math.inf, 23.847502], abs=1e-6, nan_ok=True)


def test_a_forest_shows_each_difference_with_its_verdict():
    runs, _ = find_runs([REPOSITORY / "docs/results/2000-iterations"])
    analysis = analyse(compare(runs))
    error, ssim = draw_forest(analysis)
    assert (error.name, ssim.name) == ("differences-held-out-error", "differences-ssim")
    for chart, heading in ((error, "held-out error"), (ssim, "SSIM")):
        rows = {contrast.name: row[heading] for contrast, row in analysis.effects.items()}
        assert {*rows, *MARKERS} <= set(texts(chart.svg))
