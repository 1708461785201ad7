"""`fastae sweep` makes a run per loss, as `fastae train` would make it. A stopped sweep is resumed."""

import json
import shutil
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch
import torch.distributed as dist

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.experiment.definition import Experiment, experiment_with
from fastae.experiment.losses import LOSSES
from fastae.runs.folder import RunFolder
from fastae.sweep import sweep as sweeping
from fastae.sweep.folder import RunStatus, SweepFolder, open_sweep, read_status
from fastae.sweep.plan import SweepConfig
from fastae.sweep.sweep import run_sweep, train_sweep
from fastae.sweep.table import caption
from fastae.training import distributed
from fastae.training.distributed import Ranks
from fastae.training.runner import train
from fastae.training.trainer import Trainer

from ..commands import (
    begin_with,
    here,
    killed_before_its_first_checkpoint,
    last_iteration,
    last_training,
    same_state,
)
from ..helpers import copied, small_config, small_model

LENGTH = 3
TWO = ("minibatch_bce", "minibatch_mse")


def settings(face_folder, **others):
    return small_config(face_folder, **{"iterations": LENGTH, "log_every": 2, "eval_every": 3} | others)


@pytest.fixture(scope="module")
def swept(face_folder, tmp_path_factory):
    """A finished sweep, and the lines that it printed."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with redirect_stdout(StringIO()) as output:
        train_sweep(SweepConfig(settings(face_folder), same_init=False), out)
    return out, output.getvalue().splitlines()


@pytest.fixture
def copy(swept, tmp_path):
    """A copy of the sweep, in which all runs lack their weights, as if they had been killed before those."""
    copied(swept[0], tmp_path / "out")
    for weights in tmp_path.glob("out/*/model.safetensors"):
        weights.unlink()
    return tmp_path / "out"


def status(out, name):
    return read_status(RunFolder(out / name), batch_size=4)


def finished(out):
    """Returns the names of the runs that have final weights."""
    return {path.parent.name for path in out.glob("*/model.safetensors")}


def opened(config, folder):
    """Opens and closes a sweep's folder."""
    with open_sweep(config, folder) as opened:
        return opened


def test_a_sweep_trains_all_losses_and_its_file_holds_the_plan_alone(swept):
    out, lines = swept
    assert finished(out) == set(LOSSES)
    rows = [line.split() for line in lines]
    for planned in SweepConfig(TrainConfig(), same_init=False).runs():
        config = json.loads((out / planned.name / "config.json").read_text())["config"]
        assert (config["loss"], config["seed"]) == (planned.loss, planned.seed)
        run = status(out, planned.name)
        assert last_iteration(out / planned.name) == run.iteration == run.finished_at == LENGTH
        assert run.held_out > 0 and run.seconds > 0
        (row,) = [row for row in rows if row[:2] == [planned.name, "finished"]]
        assert row[2] == str(LENGTH)
    plan = json.loads((out / "sweep.json").read_text())
    assert plan["losses"] == list(LOSSES) and "runs" not in plan and "state" not in str(plan)


@pytest.mark.parametrize(("hours", "ratio"), [(2, "2.5x faster"), (5, "1x faster"), (6, "1.2x slower")])
def test_the_time_is_compared_with_the_articles_for_as_many_images(hours, ratio):
    half = [RunStatus(iteration=50_000, seconds=1800 * hours)] * 2  # two half runs
    text = caption(half, [half], SweepConfig(TrainConfig()))
    assert "5 h 00 min" in text and text.endswith(ratio)
    # An image takes less work, and another model other work.
    smaller = SweepConfig(TrainConfig(image_size=64))
    own = SweepConfig(TrainConfig(), experiment=experiment_with(small_model))
    assert not any("article" in caption(half, [half], config) for config in (smaller, own))


def test_the_time_left_is_that_of_the_rank_with_the_most_to_do():
    half = RunStatus(iteration=50_000, seconds=3600)
    for left, hours in (([[half] * 2], 2), ([[half], [half]], 1), ([[], [half]], 1)):
        text = caption([half] * 2, left, SweepConfig(TrainConfig()))
        assert text.startswith(f"{hours} h 00 min left; 2 h 00 min for 6,400,000 images")


def test_a_run_of_a_sweep_ends_in_the_same_bits_as_the_run_that_train_makes(swept, face_folder, tmp_path):
    (planned,) = [
        run for run in SweepConfig(TrainConfig(), same_init=False).runs() if run.loss == "pixel_mse"
    ]
    alone = train(settings(face_folder, out=tmp_path / "alone", loss="pixel_mse", seed=planned.seed))
    # What it shares with the sweep's runs before it changes no bit.
    assert same_state(last_training(swept[0] / "pixel_mse"), last_training(alone))


def test_ranks_share_the_runs_and_train_on_the_images_of_the_first_rank(face_folder, tmp_path, monkeypatch):
    """The second rank trains when the first one has only to wait for it."""
    data, store, losses = tmp_path / "data", dist.HashStore(), (*TWO, "pixel_bce")
    shutil.copytree(face_folder, data)
    config, trained = SweepConfig(settings(data, iterations=1), losses), []

    def second(_seconds):
        trained.append(finished(out))
        shutil.copy(data / "000001.jpg", data / "000.jpg")  # a file is added meanwhile
        monkeypatch.setattr(sweeping, "launched", lambda: Ranks(1, 2, 1))
        train_sweep(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "_torchrun_store", lambda: store)
    monkeypatch.setattr(sweeping, "launched", lambda: Ranks(0, 2))
    monkeypatch.setattr(distributed.time, "sleep", second)
    out = tmp_path / "runs" / "now-sweep"
    monkeypatch.setattr("time.strftime", lambda form: "now")
    train_sweep(config)
    assert trained == [{"minibatch_bce", "pixel_bce"}]
    assert finished(out) == set(losses)
    manifests = {(out / name / "images.json").read_text() for name in (*losses, ".")}
    assert len(manifests) == 1


def test_a_failed_run_is_reported_and_the_others_are_trained(face_folder, tmp_path, monkeypatch, capsys):
    open_trainer = sweeping.open_trainer

    def failing(session, config, *rest, **options):
        if config.loss == "minibatch_mse":
            raise RunFailure("out of memory at batch size 4")
        return open_trainer(session, config, *rest, **options)

    monkeypatch.setattr(sweeping, "open_trainer", failing)
    config = settings(face_folder, iterations=1)
    names = (*TWO, "pixel_bce")
    with pytest.raises(RunFailure, match=r"minibatch_mse: out of memory at batch size 4; the same call"):
        run_sweep(config, names, out=tmp_path)
    assert finished(tmp_path) == {"minibatch_bce", "pixel_bce"}
    assert "failed    minibatch_mse: out of memory at batch size 4" in capsys.readouterr().out
    monkeypatch.undo()
    assert run_sweep(config, names, out=tmp_path) == tmp_path
    assert finished(tmp_path) == set(names)


def test_same_init_and_repeats_choose_the_seeds(face_folder):
    def seeds(**others):
        config = SweepConfig(settings(face_folder, seed=7), TWO, repeats=2, **others)
        return [(run.name, run.seed) for run in config.runs()]

    expected = {"minibatch_bce": 7, "minibatch_mse": 7, "minibatch_bce-2": 8, "minibatch_mse-2": 8}
    assert dict(seeds()) == expected and len({seed for _, seed in seeds(same_init=False)}) == 4


def test_each_element_is_compiled_once(face_folder, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    config = settings(face_folder, compile=True, iterations=1)
    train_sweep(SweepConfig(config, ("minibatch_bce", "pixel_bce", "pixel_mse")), tmp_path)
    assert len(compiled) == 2


def test_a_further_loss_changes_no_seed(face_folder):
    """So an old sweep is recognised by a version, or a program, that has more losses."""
    more = experiment_with(losses={"a": lambda reconstruction, images: reconstruction - images})
    for same_init in (True, False):
        plans = [
            SweepConfig(settings(face_folder), losses, repeats=3, same_init=same_init, experiment=experiment)
            for losses, experiment in ((TWO, Experiment()), (TWO, more), (TWO[1:], more))
        ]
        assert plans[0].runs() == plans[1].runs() and plans[0].settings() == plans[1].settings()
        assert set(plans[2].runs()) < set(plans[1].runs())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--losses", "minibatch_bce,unknown"], "--losses 'unknown': not one of minibatch_bce"),
        (["--repeats", "0"], "--repeats must be"),
        (["--repeats", "2", "--seed", 2**63 - 1], "--seed must be"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, options, line):
    with pytest.raises(FastaeError, match=line) as refusal:
        here("sweep", "--out", tmp_path / "out", *options)
    assert refusal.value.exit_code == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "repeats", "line"),
    [
        ("pixel_mse", 1, "^names must be list or tuple, not 'pixel_mse'"),
        ([3], 1, "'3': not one of minibatch_bce"),
        (TWO, 2.5, "^repeats must be an integer, not 2.5"),
        (TWO, "3", "^repeats must be an integer, not '3'"),
        (TWO, 1001, "^repeats must be from 1 to 1,000"),
    ],
)
def test_a_wrong_argument_in_python_is_one_line(tmp_path, names, repeats, line):
    with pytest.raises(FastaeError, match=line):
        run_sweep(TrainConfig(), names, repeats=repeats, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused_settings_leave_no_plan_behind(face_folder, tmp_path):
    def begin(**others):
        config = settings(face_folder, iterations=1, **others)
        return train_sweep(SweepConfig(config, ("pixel_mse",)), tmp_path)

    for wrong, message in (({"batch_size": 39}, "39"), ({"crop": 5_000}, "the crop")):
        with pytest.raises(FastaeError, match=message):
            begin(**wrong)
        assert not list(tmp_path.iterdir())
    begin()
    with pytest.raises(FastaeError, match="holds a sweep with --latent 16, not 17"):
        begin(latent=17)


def test_a_second_sweep_in_a_folder_is_refused(face_folder, tmp_path):
    one, other = (SweepConfig(settings(face_folder, latent=latent), ("pixel_mse",)) for latent in (16, 17))
    with open_sweep(one, tmp_path):
        for late in (one, other):
            with pytest.raises(FastaeError, match="is locked by another sweep"):
                train_sweep(late, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_of_a_sweep_keeps_files_that_somebody_put_in_its_folder(face_folder, tmp_path):
    (tmp_path / "pixel_mse").mkdir()
    (tmp_path / "pixel_mse" / "precious").touch()
    config = SweepConfig(settings(face_folder, iterations=1), ("pixel_mse",))
    (tmp_path / "sweep.json").write_text(json.dumps(config.settings()))
    result = train_sweep(config, tmp_path)
    assert "is not empty" in result.failed["pixel_mse"] and (tmp_path / "pixel_mse" / "precious").exists()


def test_moved_data_are_found_by_the_option_data(copy, swept, face_folder, tmp_path, capsys):
    """A run that began with other images than the sweep is not resumed."""
    moved = tmp_path / "moved"
    shutil.copytree(face_folder, moved)
    shutil.copy(moved / "000001.jpg", moved / "000.jpg")  # a file that is not among the sweep's images
    killed_before_its_first_checkpoint(copy / "pixel_bce")
    images = RunFolder(copy / "sample_bce").read_manifest()
    begin_with(copy / "sample_bce", replace(images, train=dict(reversed(images.train.items()))))
    result = train_sweep(SweepConfig(settings(moved), same_init=False), copy)
    assert finished(copy) == set(LOSSES) - {"sample_bce"}
    assert list(result.failed) == ["sample_bce"] and "other images" in result.failed["sample_bce"]
    printed = capsys.readouterr().out
    assert f"data      {moved}\n" in printed and "images    38 to train on" in printed
    assert same_state(last_training(copy / "pixel_bce"), last_training(swept[0] / "pixel_bce"))


def test_a_resumed_sweep_keeps_its_loader_unless_another_is_named(copy, face_folder):
    for name, loader in [("pixel_bce", "auto"), ("sample_bce", "dali")]:
        shutil.rmtree(copy / name)
        train_sweep(SweepConfig(settings(face_folder, loader=loader), same_init=False), copy)
    loaders = [RunFolder(copy / name).read_description().loader for name in ("pixel_bce", "sample_bce")]
    assert loaders == ["resident", "dali"]


def test_a_folder_of_another_plan_is_refused_with_the_differences(swept, face_folder, tmp_path):
    other = SweepConfig(settings(face_folder, lr=0.5, iterations=9))
    with pytest.raises(
        FastaeError, match=r"--same-init False, not True, --iterations 3, not 9, --lr 0\.0001"
    ):
        opened(other, swept[0])
    (tmp_path / "file").touch()
    with pytest.raises(FastaeError, match="is not empty and holds no sweep"):
        opened(other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(FastaeError, match="cannot be read as a sweep"):
        opened(other, tmp_path)
    assert SweepFolder(tmp_path).file.exists()


def test_a_sweep_names_the_option_that_resumes_it(face_folder, tmp_path, monkeypatch):
    """Without --out the same command would begin another sweep."""
    monkeypatch.chdir(tmp_path)
    advance = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda each: signal.raise_signal(signal.SIGTERM) or advance(each))
    with pytest.raises(Stopped) as stopped:
        train_sweep(SweepConfig(settings(face_folder), TWO[:1]))
    (folder,) = tmp_path.glob("runs/*")
    assert f"--out {folder.relative_to(tmp_path)}" in str(stopped.value)


def test_a_run_is_finished_if_it_has_its_weights(swept, face_folder, tmp_path):
    """A run that was killed after its last checkpoint only gets them, and a lost run is trained again."""
    copied(swept[0], tmp_path / "out")
    first, second = list(LOSSES)[:2]
    weights = tmp_path / "out" / first / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    shutil.rmtree(tmp_path / "out" / second)
    train_sweep(SweepConfig(settings(face_folder), same_init=False), tmp_path / "out")
    assert finished(tmp_path / "out") == set(LOSSES) and weights.read_bytes() == before
    assert same_state(last_training(tmp_path / "out" / second), last_training(swept[0] / second))


def test_losses_and_a_model_of_ones_own_are_swept(face_folder, tmp_path):
    def absolute_error(reconstruction, images):
        return (reconstruction - images).abs()

    config, losses = settings(face_folder, iterations=1), {"own": absolute_error}
    names = ["minibatch_own", "pixel_own", "minibatch_mse"]
    out = run_sweep(config, names, model=small_model, losses=losses, out=tmp_path)
    assert finished(out) == set(names)
    described = json.loads((out / "pixel_own" / "config.json").read_text())
    assert (described["element"], described["reduction"]) == ("own", "pixel")
    assert described["model"].endswith("small_model")
    with pytest.raises(FastaeError, match="minibatch_unknown"):
        run_sweep(config, ["minibatch_unknown"], losses=losses, out=tmp_path / "other")
