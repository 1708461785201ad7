"""Runs that differ in nothing but the seed are a group; others are told apart by what differs."""

import math

import pytest

from fastae.losses import LOSSES
from fastae.report.groups import group_seeds
from fastae.report.runs import find_runs

from .made import make_run


def groups_of(folder):
    """Label -> names of the runs."""
    groups = group_seeds(find_runs([folder])[0])
    return {group.label: [run.name for run in group.runs] for group in groups}


def test_runs_of_other_seeds_are_one_group_and_each_loss_has_its_own(tmp_path):
    for seed in range(3):
        for loss in LOSSES:
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, device=f"device {seed}")
    assert groups_of(tmp_path) == {loss: [f"{loss}-{seed}" for seed in range(3)] for loss in LOSSES}


@pytest.mark.parametrize(
    ("settings", "one", "other"),
    [
        ({"lr": 5e-4}, "--lr 0.0001", "--lr 0.0005"),
        ({"antialias": True, "batch_size": 8}, "--batch-size 4 --no-antialias", "--batch-size 8 --antialias"),
        ({"crop": 30}, "no --crop", "--crop 30"),
        ({"amp": True}, "--no-amp", "--amp"),
        ({"data": "/other"}, "images /gone/faces", "images /other"),
    ],
)
def test_two_runs_of_a_loss_with_other_settings_are_named_by_them(settings, one, other, tmp_path):
    make_run(tmp_path / "a", "pixel_mse", seed=1)
    make_run(tmp_path / "b", "pixel_mse", seed=2, **settings)
    assert groups_of(tmp_path) == {f"pixel_mse {one}": ["a"], f"pixel_mse {other}": ["b"]}


def test_what_most_runs_share_is_not_in_the_labels(tmp_path):
    for loss in LOSSES:
        make_run(tmp_path / loss, loss)
    make_run(tmp_path / "odd", "pixel_mse", lr=5e-4)
    make_run(tmp_path / "alone", "sample_bce", brightness=0.5)
    assert {*groups_of(tmp_path)} == {*LOSSES, "pixel_mse --lr 0.0005", "sample_bce --brightness 0.5"}


def test_a_seed_that_was_trained_twice_and_a_run_that_failed_are_by_themselves(tmp_path):
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
