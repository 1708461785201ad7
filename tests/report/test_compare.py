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
    for index, loss in enumerate(LOSSES):
        make_run(tmp_path / loss, loss, seed=index, **ends_at(300_000.0 - 1000 * index))
    found = compared(tmp_path)
    assert not found.warnings and (found.at, len(found.compared)) == (100, 6)
    assert list(found.errors) == list(reversed(LOSSES))


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"batch_size": 8}, "--batch-size 8, not 4"),
        ({"data": "/other"}, "images /other, not /gone/faces"),
        ({"lr": 1e-3}, "--lr 0.001, not 0.0001"),
    ],
)
def test_a_run_of_other_work_is_marked_and_not_compared_and_one_of_other_speed_is(settings, mark, tmp_path):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss)
    make_run(tmp_path / "odd", "pixel_mse", **settings)
    make_run(tmp_path / "fast", "sample_mse", device="NVIDIA H100", amp=True, threads=2)
    found = compared(tmp_path)
    assert found.warnings == [f"odd: not compared: {mark}"]
    assert names(found) == ["minibatch_bce", "pixel_bce", "fast"]


def test_an_unfinished_run_is_marked_and_all_are_compared_where_all_were_evaluated(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    make_run(tmp_path / "broken", "pixel_bce", train={1: 9e5, 60: 4e5}, held_out={0: START, 50: 390_000.0})
    make_run(tmp_path / "young", "pixel_mse", train={1: 9e5, 20: 4e5}, held_out={0: START})
    found = compared(tmp_path)
    broken, *_, young = found.warnings
    assert "broken" in broken and "60 of 100" in broken and "young" in young and "not 100" in young
    assert (found.at, names(found)) == (50, ["whole", "broken"])
    assert {loss: errors.tolist() for loss, errors in found.errors.items()} == {
        "pixel_bce": [390_000], "minibatch_bce": [400_000],
    }  # fmt: skip


def test_a_run_that_ends_in_nan_is_marked_and_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    make_run(
        tmp_path / "lost", "pixel_bce",
        train={1: 9e5, 60: math.nan, 100: math.nan}, held_out={0: START, 50: 4e5, 100: math.nan},
    )  # fmt: skip
    make_run(tmp_path / "blip", "sample_bce", train={1: 9e5, 60: math.nan, 100: 3e5})
    make_run(tmp_path / "unseen", "sample_mse", held_out={})
    found = compared(tmp_path)
    lost, blip, unseen = found.warnings
    assert "lost: not compared" in lost and "blip: " in blip and "60" in blip
    assert "unseen: not compared" in unseen
    assert names(found) == ["whole", "blip"]


def test_seeds_are_the_samples_of_a_loss_and_two_runs_of_one_seed_are_one_sample(tmp_path):
    finals = {"minibatch_bce": [310e3, 305e3, 300e3], "pixel_mse": [290e3, 296e3, 293e3]}
    for loss, values in finals.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, **ends_at(value))
    make_run(tmp_path / "again", "pixel_mse", seed=0, **ends_at(290e3))
    found = compared(tmp_path)
    assert {loss: errors.tolist() for loss, errors in found.errors.items()} == dict(reversed(finals.items()))
