"""Run folders found, named and read."""

import math

import pytest

from fastae.errors import FastaeError
from fastae.report.runs import find_runs
from fastae.runs.metrics import NAME

from .made import gpu_report, make_run


def only(folder):
    ((run,), _) = find_runs([folder])
    return run


def test_runs_are_found_one_and_two_levels_below_in_the_articles_order(tmp_path):
    make_run(tmp_path / "z", "minibatch_bce", seed=1)
    make_run(tmp_path / "deep" / "y", "minibatch_bce")
    make_run(tmp_path / "a", "sample_mse")
    make_run(tmp_path / "deep" / "too" / "far" / "x", "pixel_bce")
    (tmp_path / "sweep.json").write_text("{}")
    runs, warnings = find_runs([tmp_path])
    assert [(run.name, run.loss, run.config.seed) for run in runs] == [
        ("y", "minibatch_bce", 0), ("z", "minibatch_bce", 1), ("a", "sample_mse", 0),
    ]  # fmt: skip
    assert warnings == []


def test_a_folder_that_is_no_run_is_refused_if_named_and_skipped_if_found(tmp_path):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model": "another program\'s"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, named in (("bad", "bad/config.json"), ("empty", "empty"), ("file", "file"), ("gone", "gone")):
        with pytest.raises(FastaeError, match=named):
            find_runs([tmp_path / "good", tmp_path / name])
    runs, (warning,) = find_runs([tmp_path])
    assert [run.name for run in runs] == ["good"] and "bad/config.json" in warning


def test_a_run_that_has_logged_nothing_is_named_and_alone_is_refused(tmp_path):
    make_run(tmp_path / "waiting", train={}, held_out={})
    with pytest.raises(FastaeError, match="waiting"):
        find_runs([tmp_path])
    make_run(tmp_path / "running", "pixel_bce")
    assert any("waiting" in warning for warning in find_runs([tmp_path])[1])


def test_damaged_metrics_are_named_and_another_file_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / NAME).open("a") as file:
        file.write("text\n")
    ((run,), (warning,)) = find_runs([folder])
    assert run.iteration == 100 and str(folder / NAME) in warning
    (folder / NAME).write_text("text\n")
    with pytest.raises(FastaeError, match=NAME):
        find_runs([folder])


def test_speed_is_that_of_all_windows_but_the_slowest_and_time_that_of_all(tmp_path):
    # 1 iteration at 4 images/s, 49 at 100, 50 at 50, of 4 images each: 1 s, 1.96 s and 4 s.
    run = only(make_run(tmp_path / "run"))
    run.metrics.train.values["images_per_second"][:] = [4.0, 100.0, 50.0]
    assert run.images_per_second == pytest.approx(99 * 4 / 5.96)
    assert run.seconds == pytest.approx(6.96)
    run.metrics.train.values["images_per_second"][:] = [math.nan, 0.0, -1.0]
    assert math.isnan(run.images_per_second) and run.seconds == 0


def test_runs_that_took_turns_on_a_device_have_no_speed_time_or_energy_of_their_own(tmp_path):
    run = only(make_run(tmp_path / "run", gpu=gpu_report(0.5), described={"at_once": 2}))
    assert run.took_turns and math.isnan(run.images_per_second) and run.seconds == 0 and math.isnan(run.kwh)


def test_energy_is_claimed_only_if_all_gpus_were_measured_in_all_of_the_run(tmp_path):
    counted = gpu_report(0.5)
    make_run(tmp_path / "a", gpu=counted)
    make_run(tmp_path / "b", gpu=counted, described={"world_size": 4})
    make_run(tmp_path / "c", gpu=counted, described={"resumed": [50]})
    make_run(tmp_path / "d", gpu=gpu_report(None))  # as the monitor writes if a GPU is missing
    (make_run(tmp_path / "e", gpu=counted) / "gpu.json").write_text("{[")
    make_run(tmp_path / "f", gpu=gpu_report(0.5, 0.25), described={"resumed": [50]})
    make_run(tmp_path / "g", gpu=gpu_report(0.5, None), described={"resumed": [50]})
    energies = {run.name: run.kwh for run in find_runs([tmp_path])[0]}
    assert (energies["a"], energies["b"], energies["f"]) == (0.5, 0.5, 0.75)
    assert all(math.isnan(energies[name]) for name in "cdeg"), "a session or a GPU is missing"


@pytest.mark.parametrize(
    ("settings", "train", "held_out", "finished"),
    [
        ({}, {1: 9.0, 100: 5.0}, {0: 9.0}, True),
        ({}, {1: 9.0, 61: 5.0}, {0: 9.0, 61: 5.0}, False),
        ({"minutes": 1.0, "weights": 0}, {1: 9.0, 61: 5.0}, {0: 9.0, 61: 5.0}, True),
        ({"minutes": 1.0}, {1: 9.0, 61: 5.0}, {0: 9.0, 61: 5.0}, False),  # killed at an evaluation
        ({"minutes": 1.0}, {1: 9.0, 61: 5.0}, {0: 9.0, 50: 5.0}, False),
        ({"minutes": 1.0}, {}, {0: 9.0}, False),
    ],
)
def test_a_run_ends_with_its_iterations_or_with_the_evaluation_at_its_minutes(
    settings, train, held_out, finished, tmp_path
):
    assert only(make_run(tmp_path / "run", train=train, held_out=held_out, **settings)).finished is finished


def test_every_run_is_counted_once_and_has_a_name_of_its_own(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a/s/r", "b/s/r", "b/t/r", "q")]
    runs, _ = find_runs([*folders, tmp_path / "b", tmp_path / "q"])
    assert [run.name for run in runs] == ["a/s/r", "b/s/r", "t/r", "q"]
