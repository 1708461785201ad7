"""A user's own losses and model in a report: they are shown like fastae's, except for reconstructions."""

import pytest

from fastae.experiment.definition import ARTICLES_MODEL
from fastae.report.analysis import analyse
from fastae.report.compare import compare
from fastae.report.runs import PRIMARY, find_runs

from .made import make_run
from .test_gallery import gallery_of, labels_of


def make_own(folder, loss, seeds=2, model=None, **settings):
    """Makes runs of a user's own loss, given as (reduction, element). The error is less with each seed."""
    reduction, element = loss
    described = {"element": element, "reduction": reduction, "model": model}
    for seed in range(seeds):
        ends = {0: 9e5, 100: 250_000.0 - 1000 * seed}
        name = f"{reduction}_{element}"
        make_run(folder / f"{name}-{seed}", name, seed=seed, held_out=ends, described=described, **settings)


@pytest.fixture
def runs(tmp_path):
    """Two seeds of two of fastae's losses and of two elements of a user's own."""
    for loss in ("minibatch_bce", "pixel_mse"):
        for seed in range(2):
            ends = {0: 9e5, 100: 300_000.0 - 1000 * seed}
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, held_out=ends)
    for loss in (("pixel", "other_own"), ("minibatch", "own"), ("minibatch", "other_own")):
        make_own(tmp_path, loss)
    return tmp_path


def test_own_losses_are_sorted_ranked_and_compared_with_fastaes(runs):
    found, warnings = find_runs([runs])
    losses = list(dict.fromkeys(run.loss.name for run in found))
    assert losses == ["minibatch_bce", "minibatch_other_own", "minibatch_own", "pixel_mse", "pixel_other_own"]
    comparison = compare(found)
    assert {*comparison.endpoints[PRIMARY]} == {*losses} and not warnings and not comparison.warnings
    values = {contrast.name: effect.value for contrast, effect in analyse(comparison).primary.items()}
    assert values == {
        "squared error − cross entropy": 0.0,
        "other_own − cross entropy": -50_000.0,
        "own − cross entropy": -50_000.0,
        "other_own − squared error": -50_000.0,
        "own − squared error": -50_000.0,
        "own − other_own": 0.0,
        "minibatch − pixel": 0.0,
    }


def test_an_own_model_is_reported_on_without_reconstructions_in_one_line(tmp_path, face_folder):
    make_run(tmp_path / "article", data=face_folder, weights=0, described={"model": ARTICLES_MODEL})
    make_run(tmp_path / "older", seed=1, data=face_folder)
    for loss in (("minibatch", "own"), ("pixel", "own")):
        make_own(tmp_path, loss, data=face_folder, weights=0, model="nets.Residual")
    gallery, (warning,) = gallery_of(tmp_path, face_folder)
    assert labels_of(gallery) == ["minibatch_bce model article's"]
    assert "minibatch_own" in warning and "pixel_own" in warning


@pytest.mark.parametrize(
    "described", [{}, {"element": "other_own", "reduction": "minibatch"}, {"element": "own"}]
)
def test_a_loss_that_its_description_does_not_explain_is_skipped(described, tmp_path):
    make_run(tmp_path / "good")
    make_run(tmp_path / "odd", "minibatch_own", described=described)
    (run,), (warning,) = find_runs([tmp_path])
    assert run.name == "good" and "odd/config.json" in warning and "minibatch_own" in warning
