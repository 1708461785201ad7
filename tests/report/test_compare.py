"""Which runs are compared and where, and how their losses rank."""

import math

import pytest

from fastae.losses import LOSSES
from fastae.report.compare import compare
from fastae.report.runs import find_runs

from .made import make_run

START = 900_000.0


def compared(folder):
    return compare(find_runs([folder])[0])


def names(comparison):
    return [run.name for run in comparison.compared]


def ends_at(value):
    return {"held_out": {0: START, 50: 400_000.0, 100: value}}


def test_runs_alike_have_no_marks_and_are_ranked_at_the_end(tmp_path):
    for place, loss in enumerate(LOSSES):
        make_run(tmp_path / loss, loss, seed=place, **ends_at(300_000.0 - 1000 * place))
    found = compared(tmp_path)
    assert not any(found.marks.values()) and (found.at, len(found.compared)) == (100, 6)
    assert list(found.errors) == list(reversed(LOSSES))
    assert (found.best, found.worst, found.difference) == ("sample_mse", "minibatch_bce", 5000)
    assert found.deviation is None


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"batch_size": 8}, "--batch-size 8, not 4"),
        ({"image_size": 64}, "--image-size 64, not 32"),
        ({"data": "/other"}, "images /other, not /gone/faces"),
        ({"lr": 1e-3}, "--lr 0.001, not 0.0001"),
    ],
)
def test_a_run_of_other_work_is_marked_and_not_compared(settings, mark, tmp_path):
    for loss in ("minibatch_bce", "pixel_bce", "sample_bce"):
        make_run(tmp_path / loss, loss)
    odd = make_run(tmp_path / "odd", "pixel_mse", **settings)
    found = compared(tmp_path)
    assert found.marks[odd] == (f"not compared: {mark}",)
    assert names(found) == ["minibatch_bce", "pixel_bce", "sample_bce"]


def test_a_run_of_other_speed_is_compared(tmp_path):
    make_run(tmp_path / "a", "minibatch_bce")
    make_run(tmp_path / "b", "pixel_mse", device="NVIDIA H100", amp=True, threads=2)
    assert names(compared(tmp_path)) == ["a", "b"]


def test_an_unfinished_run_is_marked_and_all_are_compared_where_all_were_evaluated(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    broken = make_run(
        tmp_path / "broken", "pixel_bce", train={1: 9e5, 60: 4e5}, held_out={0: START, 50: 390_000.0}
    )
    found = compared(tmp_path)
    assert "60 of 100" in found.marks[broken][0]
    assert (found.at, len(found.compared)) == (50, 2)
    assert {loss: errors.tolist() for loss, errors in found.errors.items()} == {
        "pixel_bce": [390_000], "minibatch_bce": [400_000],
    }  # fmt: skip


def test_a_run_that_did_not_get_half_as_far_is_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    broken = make_run(tmp_path / "broken", "pixel_bce", train={1: 9e5, 20: 4e5}, held_out={0: START})
    found = compared(tmp_path)
    assert any("not compared: 20 iterations, not 100" in mark for mark in found.marks[broken])
    assert (found.at, names(found)) == (100, ["whole"])


def test_a_run_that_ends_in_nan_is_marked_and_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    lost = make_run(
        tmp_path / "lost", "pixel_bce",
        train={1: 9e5, 60: math.nan, 100: math.nan}, held_out={0: START, 50: 4e5, 100: math.nan},
    )  # fmt: skip
    blip = make_run(tmp_path / "blip", "sample_bce", train={1: 9e5, 60: math.nan, 100: 3e5})
    found = compared(tmp_path)
    assert len(found.marks[lost]) == len(found.marks[blip]) == 1
    assert "not compared" in found.marks[lost][0] and "60" in found.marks[blip][0]
    assert names(found) == ["whole", "blip"]


def test_steps_that_were_not_finite_are_counted(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "nan.txt").write_text("7\ta.jpg\n7\tb.jpg\n9\tc.jpg\n")
    assert compared(tmp_path).marks[folder] == ("2 steps without a finite loss",)


def test_seeds_of_a_loss_have_a_mean_and_a_deviation(tmp_path):
    finals = {"minibatch_bce": [310e3, 305e3, 300e3], "pixel_mse": [290e3, 296e3, 293e3]}
    for loss, values in finals.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, **ends_at(value))
    found = compared(tmp_path)
    assert (found.best, found.difference) == ("pixel_mse", 12_000)
    assert found.deviation == pytest.approx(5000)


def test_two_runs_of_one_seed_are_one_draw(tmp_path):
    make_run(tmp_path / "a", "minibatch_bce", **ends_at(300_000.0))
    make_run(tmp_path / "b", "minibatch_bce", **ends_at(300_000.0))
    assert compared(tmp_path).deviation is None


def test_a_run_that_was_never_evaluated_is_compared_nowhere(tmp_path):
    make_run(tmp_path / "run", held_out={})
    found = compared(tmp_path)
    assert (found.at, found.errors, found.compared) == (0, {}, ())
