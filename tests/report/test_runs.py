"""Run folders are found, named and read."""

import math

import pytest

from fastae.errors import FastaeError
from fastae.report.runs import find_runs
from fastae.runs.metrics import NAME

from ..commands import refuses
from .made import make_run


def only(folder):
    ((run,), _) = find_runs([folder])
    return run


def test_runs_are_found_one_and_two_levels_below_in_the_articles_order(tmp_path):
    make_run(tmp_path / "z", "minibatch_bce", seed=1)
    make_run(tmp_path / "deep" / "y", "minibatch_bce")
    make_run(tmp_path / "a", "sample_mse")
    make_run(tmp_path / "a" / "below", "sample_mse")
    make_run(tmp_path / "deep" / "too" / "far" / "x", "pixel_bce")
    runs, warnings = find_runs([tmp_path])
    assert [(run.name, run.loss.name, run.config.seed) for run in runs] == [
        ("y", "minibatch_bce", 0), ("z", "minibatch_bce", 1), ("a", "sample_mse", 0),
    ]  # fmt: skip
    assert warnings == []


def test_every_run_is_counted_once_and_has_a_name_of_its_own(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a/s/r", "b/s/r", "b/t/r")]
    runs, _ = find_runs([*folders, tmp_path / "b"])
    assert [run.name for run in runs] == ["a/s/r", "b/s/r", "b/t/r"]


def test_a_folder_without_runs_is_refused_and_one_that_cannot_be_read_is_skipped(tmp_path):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model": "another program\'s"}')
    make_run(tmp_path / "waiting", train={}, held_out={})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("empty", "file", "gone"):
        with pytest.raises(FastaeError, match=f"no run in .*{name}"):
            find_runs([tmp_path / "good", tmp_path / name])
    (run,), (bad, waiting) = find_runs([tmp_path])
    assert run.name == "good" and "bad/config.json" in bad and str(tmp_path / "waiting") in waiting
    for name in ("bad", "waiting"):
        with pytest.raises(FastaeError, match=name):
            find_runs([tmp_path / name])


def test_damaged_metrics_are_named_and_another_file_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / NAME).open("a") as file:
        file.write("text\n")
    ((run,), (warning,)) = find_runs([folder])
    assert run.iteration == 100 and str(folder / NAME) in warning
    (folder / NAME).write_text("text\n")
    with pytest.raises(FastaeError, match=NAME):
        find_runs([folder])


def test_speed_excludes_the_slowest_window_and_time_counts_all_windows(tmp_path):
    # 1 iteration at 4 images/s, 49 at 100, 50 at 50, of 4 images each: 1 s, 1.96 s and 4 s.
    run = only(make_run(tmp_path / "run"))
    run.metrics.train.values["images_per_second"][:] = [4.0, 100.0, 50.0]
    assert run.images_per_second == pytest.approx(99 * 4 / 5.96)
    assert run.seconds == pytest.approx(6.96)
    run.metrics.train.values["images_per_second"][:] = [math.nan, 0.0, -1.0]
    assert math.isnan(run.images_per_second) and run.seconds == 0


def test_energy_is_reported_only_if_all_gpus_were_measured_in_the_whole_run(tmp_path):
    for name, (kwh, described) in {
        "whole": ([0.5], {"world_size": 4}),
        "resumed": ([0.5, 0.25], {"resumed": [50]}),
        "a session is missing": ([0.5], {"resumed": [50]}),
        "a GPU is missing": ([None], {}),
        "a GPU was missing later": ([0.5, None], {"resumed": [50]}),
    }.items():
        make_run(tmp_path / name, kwh=kwh, described=described)
    (make_run(tmp_path / "damaged", kwh=[0.5]) / "gpu.json").write_text("{[")
    runs = {run.name: run for run in find_runs([tmp_path])[0]}
    known = {name: run.kwh for name, run in runs.items() if not math.isnan(run.kwh)}
    assert known == {"whole": 0.5, "resumed": 0.75}


@pytest.mark.parametrize(
    ("settings", "last", "evaluated", "finished"),
    [
        ({}, 100, 0, True),
        ({}, 61, 61, False),
        ({"minutes": 1.0, "weights": 0}, 61, 61, True),
        ({"minutes": 1.0}, 61, 61, False),  # killed at an evaluation
        ({"minutes": 1.0}, 61, 50, False),
    ],
)
def test_a_run_is_finished_by_its_iterations_or_by_final_weights_after_its_minutes(
    settings, last, evaluated, finished, tmp_path
):
    made = make_run(
        tmp_path / "run", train={1: 9.0, last: 5.0}, held_out={0: 9.0, evaluated: 5.0}, **settings
    )
    assert only(made).finished is finished


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "pixel_mse")
    assert "--data" in refuses("report", run, "--data", tmp_path / "gone")
    assert not (run / "report.html").exists()
