"""Which runs are compared and where, and which runs are one curve."""

import math

import pytest

from fastae.experiment.losses import LOSSES
from fastae.report.compare import compare, group_seeds
from fastae.report.runs import PRIMARY, find_runs

from .made import make_run

START = 900_000.0


def compared(folder):
    """Returns the comparison of the folder's runs, and the names of the compared ones."""
    found = compare(find_runs([folder])[0])
    return found, [run.name for run in found.compared]


def groups_of(folder):
    """Returns label of a group -> names of its runs."""
    groups = group_seeds(find_runs([folder])[0])
    return {group.label: [run.name for run in group.runs] for group in groups}


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"batch_size": 8}, "--batch-size 8, not 4"),
        ({"data": "/other"}, "images /other, not /gone/faces"),
        ({"described": {"model": "nets.Residual"}}, "model nets.Residual, not article's"),
    ],
)
def test_runs_with_other_speed_settings_are_compared_but_not_runs_with_another_task(settings, mark, tmp_path):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss)
    make_run(tmp_path / "odd", "pixel_mse", **settings)
    make_run(tmp_path / "fast", "sample_mse", described={"device": "NVIDIA H100"}, amp=True, threads=2)
    found, names = compared(tmp_path)
    assert found.warnings == [f"odd: not compared: {mark}"]
    assert names == ["minibatch_bce", "pixel_bce", "fast"]


def test_the_runs_that_are_compared_have_all_their_conditions_in_common(tmp_path):
    """No run has the most common value of each setting."""
    for name, settings in {"a": {"batch_size": 8}, "b": {"lr": 2e-4}, "c": {"latent": 32}}.items():
        make_run(tmp_path / name, "pixel_mse", **settings)
    found, names = compared(tmp_path)
    assert names == ["a"] and {line.partition(":")[0] for line in found.warnings} == {"b", "c"}


def test_an_unfinished_run_is_marked_and_runs_are_compared_at_their_last_common_evaluation(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    make_run(tmp_path / "broken", "pixel_bce", train={1: 9e5, 60: 4e5}, held_out={0: START, 50: 390_000.0})
    make_run(tmp_path / "young", "pixel_mse", train={1: 9e5, 20: 4e5}, held_out={0: START})
    found, names = compared(tmp_path)
    broken, *_, young = found.warnings
    assert "broken" in broken and "60 of 100" in broken and "young" in young and "not 100" in young
    assert (found.ends, names) == ((50,), ["whole", "broken"])
    assert found.endpoints[PRIMARY] == {"minibatch_bce": {0: 400_000}, "pixel_bce": {0: 390_000}}


def test_the_endpoint_is_the_mean_of_the_last_four_common_evaluations(tmp_path):
    errors = {0: START, 20: 8e5, 40: 4e5, 60: 3e5, 70: 1e5, 80: 2e5, 100: 1e5}
    make_run(tmp_path / "a", "minibatch_bce", held_out=errors)
    make_run(tmp_path / "b", "pixel_bce", held_out={step: errors[step] for step in errors if step != 70})
    found, _ = compared(tmp_path)
    assert found.ends == (40, 60, 80, 100)
    assert found.endpoints[PRIMARY] == {"minibatch_bce": {0: 250_000}, "pixel_bce": {0: 250_000}}


def test_a_run_that_ends_in_nan_is_marked_and_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    make_run(
        tmp_path / "lost", "pixel_bce",
        train={1: 9e5, 60: math.nan, 100: math.nan}, held_out={0: START, 50: 4e5, 100: math.nan},
    )  # fmt: skip
    make_run(tmp_path / "blip", "sample_bce", train={1: 9e5, 60: math.nan, 100: 3e5})
    make_run(tmp_path / "unseen", "sample_mse", held_out={})
    found, names = compared(tmp_path)
    lost, blip, unseen = found.warnings
    assert "lost: not compared" in lost and "blip: " in blip and "60" in blip
    assert "unseen: not compared" in unseen and names == ["whole", "blip"]


def test_seeds_are_the_samples_of_a_loss_and_two_runs_of_one_seed_are_one_sample(tmp_path):
    finals = {"pixel_mse": [290e3, 296e3, 293e3], "minibatch_bce": [310e3, 305e3, 300e3]}
    for loss, values in finals.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, held_out={0: START, 100: value})
    make_run(tmp_path / "pixel_mse-again", "pixel_mse", held_out={0: START, 100: 1e3})
    found, _ = compared(tmp_path)
    assert not found.warnings and found.ends == (100,)
    assert found.endpoints[PRIMARY] == {loss: dict(enumerate(values)) for loss, values in finals.items()}


@pytest.mark.parametrize(
    ("settings", "one", "other"),
    [
        ({"lr": 5e-4}, "--lr 0.0001", "--lr 0.0005"),
        ({"antialias": True, "batch_size": 8}, "--batch-size 4 --no-antialias", "--batch-size 8 --antialias"),
    ],
)
def test_two_runs_of_a_loss_with_other_settings_are_named_by_them(settings, one, other, tmp_path):
    make_run(tmp_path / "a", "pixel_mse", seed=1)
    make_run(tmp_path / "b", "pixel_mse", seed=2, **settings)
    assert groups_of(tmp_path) == {f"pixel_mse {one}": ["a"], f"pixel_mse {other}": ["b"]}


def test_seeds_are_one_group_and_what_most_runs_share_is_not_in_the_labels(tmp_path):
    for seed in range(2):
        for loss in LOSSES:
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, described={"device": f"device {seed}"})
    make_run(tmp_path / "odd", "pixel_mse", lr=5e-4)
    assert groups_of(tmp_path) == {
        **{loss: [f"{loss}-0", f"{loss}-1"] for loss in LOSSES}, "pixel_mse --lr 0.0005": ["odd"],
    }  # fmt: skip


def test_repeated_seeds_and_failed_runs_form_groups_of_their_own(tmp_path):
    for seed in range(2):
        make_run(tmp_path / f"seed-{seed}", seed=seed)
    make_run(tmp_path / "seed-again", seed=1)
    make_run(tmp_path / "young", seed=2, train={1: 9e5, 40: 4e5}, held_out={0: 9e5})
    make_run(tmp_path / "lost", seed=3, train={1: 9e5, 100: math.nan})
    for name in ("a", "b"):
        make_run(tmp_path / name, "pixel_mse")
    assert groups_of(tmp_path) == {
        "pixel_mse (a)": ["a"],
        "pixel_mse (b)": ["b"],
        "minibatch_bce": ["seed-0", "seed-1"],
        "minibatch_bce (seed-again)": ["seed-again"],
        "minibatch_bce (young)": ["young"],
        "minibatch_bce (lost)": ["lost"],
    }
