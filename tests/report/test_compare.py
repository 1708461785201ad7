"""Which runs are compared and where, and what their differences are worth."""

import math

import numpy as np
import pytest
from scipy.stats import tukey_hsd

from fastae.losses import LOSSES
from fastae.report.compare import find_mixture, standing
from fastae.report.gather import gather

from .made import make_run

START = 900_000.0


def mixture_of(folder):
    runs, _ = gather([folder])
    return find_mixture(runs)


def ends_at(value):
    return {"held_out": {0: START, 50: 400_000.0, 100: value}}


def test_runs_alike_have_no_marks_and_are_compared_at_the_end(tmp_path):
    for place, loss in enumerate(LOSSES):
        make_run(tmp_path / loss, loss, seed=place, **ends_at(300_000.0 - 1000 * place))
    mixture = mixture_of(tmp_path)
    found = standing(mixture)
    assert mixture.warnings == () and not any(mixture.marks.values())
    assert (mixture.at, len(mixture.compared)) == (100, 6)
    assert (found.best, found.worst) == ("sample_mse", "minibatch_bce")
    assert found.range == pytest.approx(5000 / 297_500)
    assert (found.start, found.seeds) == (START, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 8}, "--batch-size 8, not 4"),
        ({"image_size": 64}, "--image-size 64, not 32"),
        ({"data": "/other"}, "data 38 + 2 images (/other), not 38 + 2 images (/gone/faces)"),
        ({"lr": 1e-3}, "--lr 0.001, not 0.0001"),
    ],
)
def test_a_run_of_other_work_is_marked_and_not_compared(settings, words, tmp_path):
    for loss in ("minibatch_bce", "pixel_bce", "sample_bce"):
        make_run(tmp_path / loss, loss)
    odd = make_run(tmp_path / "odd", "pixel_mse", **settings)
    mixture = mixture_of(tmp_path)
    assert mixture.marks[odd] == (words,)
    assert odd not in [run.path for run in mixture.compared] and len(mixture.compared) == 3
    (warning,) = mixture.warnings
    assert warning.startswith("different ") and "odd has" in warning and "not compared" in warning


def test_a_run_of_other_speed_is_marked_and_compared(tmp_path):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss)
    odd = make_run(tmp_path / "odd", "pixel_mse", device="NVIDIA H100", amp=True)
    mixture = mixture_of(tmp_path)
    assert mixture.marks[odd] == ("device NVIDIA H100, not AMD EPYC, 2 threads", "--amp on, not off")
    assert len(mixture.compared) == 3
    assert all("their speeds do not compare" in warning for warning in mixture.warnings)


def test_what_a_run_chose_by_itself_counts_not_that_it_was_left_to_it(tmp_path):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss)  # chose resident, and not to compile
    make_run(tmp_path / "same", "pixel_mse", loader="resident", compile=False)
    odd = make_run(tmp_path / "odd", "sample_mse", described={"compiled": True, "loader": "dali"})
    mixture = mixture_of(tmp_path)
    assert mixture.marks[odd] == ("--compile on, not off", "--loader dali, not resident")
    assert len(mixture.warnings) == 2


def test_an_unfinished_run_is_marked_and_all_are_compared_where_all_were_evaluated(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    broken = make_run(
        tmp_path / "broken", "pixel_bce", train={1: 9e5, 60: 4e5}, held_out={0: START, 50: 390_000.0}
    )
    mixture = mixture_of(tmp_path)
    assert mixture.marks[broken] == ("unfinished: iteration 60 of 100",)
    assert mixture.at == 50 and len(mixture.compared) == 2
    assert standing(mixture).errors == {"pixel_bce": 390_000, "minibatch_bce": 400_000}
    assert any("compared at iteration 50" in warning for warning in mixture.warnings)


def test_a_run_that_did_not_get_half_as_far_is_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    broken = make_run(tmp_path / "broken", "pixel_bce", train={1: 9e5, 20: 4e5}, held_out={0: START})
    mixture = mixture_of(tmp_path)
    assert "only 20 iterations, 100 elsewhere" in mixture.marks[broken]
    assert mixture.at == 100 and [run.loss for run in mixture.compared] == ["minibatch_bce"]


def test_a_run_that_ends_in_nan_is_marked_and_not_compared(tmp_path):
    make_run(tmp_path / "whole", "minibatch_bce")
    lost = make_run(
        tmp_path / "lost", "pixel_bce",
        train={1: 9e5, 60: math.nan, 100: math.nan}, held_out={0: START, 50: 4e5, 100: math.nan},
    )  # fmt: skip
    blip = make_run(tmp_path / "blip", "sample_bce", train={1: 9e5, 60: math.nan, 100: 3e5})
    mixture = mixture_of(tmp_path)
    assert mixture.marks[lost] == ("not a number at iteration 60",)
    assert mixture.marks[blip] == ("not a number at iteration 60",)
    assert [run.loss for run in mixture.compared] == ["minibatch_bce", "sample_bce"]


def test_steps_that_were_not_finite_are_told_of(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "nan.txt").write_text("7\ta.jpg\n7\tb.jpg\n9\tc.jpg\n")
    mixture = mixture_of(tmp_path)
    assert mixture.marks[folder] == ("2 steps without a finite loss",)


def test_the_spread_of_seeds_is_judged_as_tukeys_test_judges_it(tmp_path):
    finals = {"minibatch_bce": [310e3, 305e3, 300e3], "pixel_bce": [309e3, 301e3, 304e3],
              "pixel_mse": [290e3, 296e3, 293e3]}  # fmt: skip
    for loss, values in finals.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, **ends_at(value))
    mixture = mixture_of(tmp_path)
    found = standing(mixture)
    within = np.concatenate([np.array(values) - np.mean(values) for values in finals.values()])
    assert found.seeds.deviation == pytest.approx(math.sqrt((within**2).sum() / 6))
    assert (found.seeds.freedom, found.seeds.difference) == (6, pytest.approx(12_000))
    theirs = tukey_hsd(*finals.values()).pvalue
    assert found.seeds.chance == pytest.approx(theirs[0, 2], rel=1e-3)  # bce of minibatch against pixel_mse


def test_two_runs_of_one_seed_are_one_draw(tmp_path):
    make_run(tmp_path / "a", "minibatch_bce", **ends_at(300_000.0))
    make_run(tmp_path / "b", "minibatch_bce", **ends_at(300_000.0))
    make_run(tmp_path / "c", "pixel_bce", **ends_at(310_000.0))
    mixture = mixture_of(tmp_path)
    assert standing(mixture).seeds is None
    assert any("run more than once: minibatch_bce with seed 0" in warning for warning in mixture.warnings)
