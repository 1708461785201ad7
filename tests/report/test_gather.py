"""Runs found, named and read."""

import json
import math
import shlex

import click
import pytest

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.options import options_of
from fastae.report.gather import gather

from .made import gpu_report, make_run


def test_runs_are_found_one_and_two_levels_below_in_the_articles_order(tmp_path):
    make_run(tmp_path / "z", "minibatch_bce", seed=1)
    make_run(tmp_path / "deep" / "y", "minibatch_bce")
    make_run(tmp_path / "a", "sample_mse")
    make_run(tmp_path / "deep" / "too" / "far" / "x", "pixel_bce")
    (tmp_path / "sweep.json").write_text("{}")
    runs, troubles = gather([tmp_path])
    assert [(run.name, run.loss, run.config.seed) for run in runs] == [
        ("y", "minibatch_bce", 0), ("z", "minibatch_bce", 1), ("a", "sample_mse", 0),
    ]  # fmt: skip
    assert troubles == []


def test_runs_are_named_one_by_one_each_counted_once(tmp_path):
    one = make_run(tmp_path / "one" / "run")
    other = make_run(tmp_path / "other" / "run", "pixel_mse")
    runs, _ = gather([one, other, tmp_path / "one", one])
    assert [run.name for run in runs] == ["one/run", "other/run"]


def test_mistakes_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    make_run(tmp_path / "odd" / "run")
    for folder, words in (
        (tmp_path / "missing", "missing' does not exist"),
        (tmp_path / "file", "file' is not a folder"),
        (tmp_path / "empty", "no run in .*empty': no config.json there, nor one or two levels below"),
    ):
        with pytest.raises(FastaeError, match=words):
            gather([tmp_path / "odd", folder])


def test_a_folder_that_is_no_run_is_refused_where_named_and_left_out_where_found(tmp_path):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model": "another program\'s"}')
    with pytest.raises(FastaeError, match="no settings of a run"):
        gather([tmp_path / "bad"])
    runs, troubles = gather([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert len(troubles) == 1 and "bad/config.json" in troubles[0] and troubles[0].endswith("left out")


def test_a_run_that_has_logged_nothing_is_told_of_and_alone_is_refused(tmp_path):
    make_run(tmp_path / "waiting", train={}, held_out={0: 1.0})
    next((tmp_path / "waiting").glob("events*")).unlink()
    with pytest.raises(FastaeError, match="waiting has logged nothing yet"):
        gather([tmp_path])
    make_run(tmp_path / "running", "pixel_bce")
    assert any("has logged nothing yet" in trouble for trouble in gather([tmp_path])[1])


def test_a_config_with_anything_in_it_does_not_break_the_reading(tmp_path):
    path = make_run(tmp_path / "run") / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({"config": written["config"], "data": [], "environment": 7, "step": {"a": 1}}))
    ((run,), _) = gather([tmp_path])
    assert (run.told("data", "folder"), run.told("environment", "python")) == ("", "")
    assert run.ranks == 1


def test_speed_is_that_of_all_windows_but_the_first(tmp_path):
    # 1 iteration at 4 images/s, then 49 at 100 and 50 at 50: (49 + 50) * 4 images in 1.96 + 4 seconds.
    folder = make_run(tmp_path / "run", rate=100.0)
    ((run,), _) = gather([folder])
    rates = run.events.series("speed/images_per_second")
    rates.values[:] = [4.0, 100.0, 50.0]
    speed = run.speed()
    assert speed.images_per_second == pytest.approx(99 * 4 / 5.96)
    assert (speed.data_wait, speed.step_ms_p50) == (pytest.approx(0.01), pytest.approx(40))


def test_the_wall_time_is_the_longer_of_two_records(tmp_path):
    short, long = (gpu_report(seconds) for seconds in (60.0, 500.0))
    ((run, other), _) = gather([make_run(tmp_path / "a", gpu=short), make_run(tmp_path / "b", gpu=long)])
    assert (run.wall_seconds, other.wall_seconds) == (100, 500)


@pytest.mark.parametrize(
    ("old", "new"), [("80.0", '"long"'), ("80.0", "NaN"), ('"label": "CPU use"', '"label": [1]'), ("{", "{[")]
)
def test_a_damaged_gpu_report_is_left_out_and_named(old, new, tmp_path):
    folder = make_run(tmp_path / "run", gpu=gpu_report())
    path = folder / "gpu.json"
    path.write_text(path.read_text().replace(old, new))
    ((run,), _) = gather([folder])
    assert run.gpu is None and str(path) in run.gpu_note
    assert run.wall_seconds == 100


def test_gpus_and_energy_are_claimed_only_where_known(tmp_path):
    counted = gpu_report(kwh=0.5)
    make_run(tmp_path / "a", gpu=counted)
    make_run(tmp_path / "b", gpu=counted, described={"resumed": [50]})
    make_run(tmp_path / "c", gpu=counted, described={"step": "bf16, 4 ranks"}, device="NVIDIA H100")
    runs, _ = gather([tmp_path])
    assert [run.kwh for run in runs] == [0.5, None, None]
    assert [(run.ranks, run.on_gpu) for run in runs] == [(1, False), (1, False), (4, True)]


def test_the_command_gives_the_settings_again(tmp_path):
    data = "/a folder/with 'quotes' $HOME"
    settings = {
        "seed": 3,
        "amp": True,
        "channels_last": False,
        "compile": False,
        "minutes": 2.5,
        "data": data,
    }
    ((run,), _) = gather([make_run(tmp_path / "run", "sample_bce", **settings)])
    program, command, *options = shlex.split(run.command)

    @click.command()
    @options_of(TrainConfig)
    def parse(**values):
        return TrainConfig(**values)

    assert (program, command) == ("fastae", "train")
    assert parse.main(options, standalone_mode=False) == run.config


def test_an_infinite_or_missing_value_is_no_end(tmp_path):
    make_run(tmp_path / "a", train={1: 1.0, 50: math.inf}, held_out={0: 1.0})
    ((run,), _) = gather([tmp_path])
    assert (run.iteration, run.ended) == (50, False)


def test_minutes_end_a_run_well(tmp_path):
    make_run(tmp_path / "timed", train={1: 9.0, 61: 5.0}, held_out={0: 9.0, 61: 5.0}, minutes=1.0)
    ((run,), _) = gather([tmp_path])
    assert run.ended and run.iteration == 61
