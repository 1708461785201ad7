"""A run that was stopped, at any moment and in any way, continues as if it had not been stopped."""

import gzip
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from fastae.errors import FastaeError, Stopped
from fastae.monitor.loop_timer import WARM_UP
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.training.observers.profile import TRACE
from fastae.training.resume import resume, resume_run
from fastae.training.runner import train
from fastae.training.step.step import TrainingStep
from fastae.utils.console import console

from ..commands import (
    begin_with,
    claim,
    curve,
    last_checkpoint,
    last_iteration,
    last_training,
    same_state,
)
from ..helpers import at_iteration, copied, small_config

LENGTH, STOPPED = 24, 21
SETTINGS = {"iterations": LENGTH, "log_every": 2, "eval_every": 8, "checkpoint_every": 9, "seed": 5}
KINDS = {
    "resident": {"loader": "resident"},
    "dali": {"loader": "dali"},
    "dali-compiled": {"loader": "dali", "compile": True},
}


@pytest.fixture(scope="module")
def uninterrupted(face_folder, tmp_path_factory):
    """A function that returns the run of a kind that was never stopped. Each is made once."""

    @cache
    def run(kind="resident"):
        out = tmp_path_factory.mktemp("whole") / "run"
        return train(small_config(face_folder, out, **SETTINGS, **KINDS[kind]))

    return run


def train_until_stopped(face_folder, out, kind="resident"):
    """Trains the same run, and stops it at iteration 21."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        at_iteration(patch, STOPPED, lambda: signal.raise_signal(signal.SIGTERM))
        train(small_config(face_folder, out, **SETTINGS, **KINDS[kind]))
    return out


@pytest.fixture(scope="module")
def stopped_run(face_folder, tmp_path_factory):
    return train_until_stopped(face_folder, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return copied(stopped_run, tmp_path / "run")


def assert_the_same(run, whole):
    assert last_iteration(run) == last_iteration(whole) == LENGTH
    assert same_state(last_training(run), last_training(whole))
    for tag in ("loss_index/train", "loss/minibatch_bce", "loss_index/held_out"):
        assert curve(run, tag) == curve(whole, tag), tag
    assert [step for step, _ in curve(run)] == [1, *range(2, LENGTH + 1, 2)]
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (run, whole)]
    assert [row.split(",")[:4] for row in rows[0]] == [row.split(",")[:4] for row in rows[1]]


@pytest.mark.parametrize("kind", KINDS if os.environ.get("FASTAE_SOAK") else ["resident", "dali"])
def test_a_stopped_run_ends_in_the_same_bits_and_curves(uninterrupted, face_folder, tmp_path, kind, capsys):
    """It is stopped by a signal. Kills are in tests/faults."""
    run = train_until_stopped(face_folder, tmp_path / "run", kind)
    capsys.readouterr()
    resume_run(run, {})
    printed = capsys.readouterr().out
    assert (", compiled" in printed) is ("compiled" in kind) and f"loader    {kind.split('-')[0]}" in printed
    assert_the_same(run, uninterrupted(kind))


def replace_checkpoint(path, content):
    """Replaces a checkpoint by a new file, since the old one may be a hard link."""
    path.unlink()
    path.write_bytes(content)


def test_the_first_save_after_a_damaged_checkpoint_is_kept_and_the_damaged_one_removed(stopped):
    """By their iterations alone, the damaged checkpoint, which is the later one, would be kept."""
    replace_checkpoint(stopped / "checkpoints" / f"{STOPPED:07d}.safetensors", b"")
    resume_run(stopped, {"iterations": STOPPED - 1, "keep": 1})
    kept = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert kept == [f"{STOPPED - 1:07d}.safetensors"]
    resume_run(stopped, {"iterations": LENGTH})
    assert last_iteration(stopped) == LENGTH


def test_a_finished_run_keeps_its_valid_checkpoint_and_not_a_later_damaged_one(uninterrupted, tmp_path):
    run = copied(uninterrupted(), tmp_path / "run")
    damaged = run / "checkpoints" / "0000030.safetensors"
    damaged.write_bytes(b"damaged")
    resume_run(run, {})
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"{LENGTH:07d}.safetensors"]


def test_more_iterations_continue_from_the_end(uninterrupted, tmp_path, capsys):
    run = copied(uninterrupted(), tmp_path / "run")
    resume_run(run, {})
    assert "is finished, at iteration 24" in capsys.readouterr().out
    resume_run(run, {"iterations": LENGTH + 4})
    assert [step for step, _ in curve(run)] == [1, *range(2, LENGTH + 5, 2)]
    written = json.loads((run / "config.json").read_text())
    assert (written["config"]["iterations"], written["resumed"]) == (LENGTH + 4, [LENGTH])


def test_after_a_resume_the_profile_is_of_trained_steps_and_the_speed_leaves_out_the_first(
    uninterrupted, tmp_path, capsys
):
    """Also without a log step in time, and if an evaluation ends the first window."""
    run = copied(uninterrupted(), tmp_path / "run")
    end = LENGTH + WARM_UP + 2
    resume_run(run, {"iterations": end, "profile": 1, "log_every": 1000, "eval_every": LENGTH + 1})
    assert "convolution_backward" in gzip.decompress((run / TRACE).read_bytes()).decode()
    assert "first step" in capsys.readouterr().out


def test_a_session_that_ends_before_it_saves_is_counted(stopped, monkeypatch):
    def failing(self, *inputs):
        raise KeyError

    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr(TrainingStep, "_step", failing)
        resume_run(stopped, {})
    resume_run(stopped, {})
    assert RunFolder(stopped).read_description().resumed == (STOPPED, STOPPED)


def test_a_resumed_rank_that_is_not_the_main_one_stays_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)  # restores it as well
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FastaeError, match="is not a run folder"):
        resume(tmp_path)
    assert console.quiet


def content(run):
    """Returns path -> bytes of every file below a folder."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (["checkpoints"], "checkpoints' is missing"),
        (["checkpoints/*"], "metrics.csv reaches iteration 20"),
        (["checkpoints/*", "metrics.csv"], None),
        (["checkpoints/*", "metrics.csv", "finished"], "the weights of a finished run"),
    ],
)
def test_a_run_that_lost_its_checkpoints_is_not_begun_again(stopped, lost, reason):
    """It would overwrite the results of days. A run without any trace of progress may begin again."""
    for name in lost:
        for path in stopped.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "finished" in lost:
        (stopped / "model.safetensors").write_bytes(b"of another session")
    before = content(stopped)
    if reason:
        with pytest.raises(FastaeError, match=f"has lost its checkpoints .*{reason}"):
            resume_run(stopped, {})
        assert content(stopped) == before
    else:
        resume_run(stopped, {"iterations": 2})
        assert last_iteration(stopped) == 2


def test_a_run_with_checkpoints_of_another_version_is_not_begun_again(stopped):
    for path in stopped.glob("checkpoints/*.safetensors"):
        path.rename(path.with_suffix(".pt"))
    (stopped / "metrics.csv").unlink()
    before = content(stopped)
    with pytest.raises(FastaeError, match=r"holds 00000\d\d\.pt, which is no checkpoint of this version"):
        resume_run(stopped, {})
    assert content(stopped) == before


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(stopped):
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "checkpoints").write_text("a file")
    before = content(stopped)
    with pytest.raises(FastaeError, match="checkpoints' cannot be listed: Not a directory"):
        resume_run(stopped, {})
    assert content(stopped) == before


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 1), ("lr", 2e-4), ("loss", "minibatch_mse"), ("latent", 32)]
)
def test_a_config_json_that_contradicts_the_checkpoint_is_refused(stopped, name, value):
    """The checkpoint's digest covers its settings. config.json has no digest, and may have been edited."""
    trained = getattr(RunFolder(stopped).read_description().config, name)
    claim(stopped, **{name: value})
    before = content(stopped)
    with pytest.raises(FastaeError, match=rf"--{name} {value}, but .* was trained with {trained}: restore"):
        resume_run(stopped, {"iterations": LENGTH})
    assert content(stopped) == before


def test_other_settings_in_config_json_are_named(stopped, capsys):
    """They may be changed by options, so that they are not refused."""
    claim(stopped, iterations=STOPPED + 1, keep=0, minutes=9.0, out="elsewhere")
    capsys.readouterr()
    resume_run(stopped, {})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs")]
    changes = (
        f"iterations was {LENGTH} at iteration {STOPPED}, is {STOPPED + 1}",
        "keep was 2",
        "minutes was None",
    )
    assert len(lines) == 3 and all(any(change in line for line in lines) for change in changes)


def test_the_time_that_was_spent_is_in_the_checkpoint(stopped, capsys):
    spent = last_checkpoint(stopped).seconds
    (stopped / "metrics.csv").unlink()
    resume_run(stopped, {"iterations": 10_000, "minutes": 0.9 * spent / 60})
    assert "is finished, at iteration 21; --minutes extends it" in capsys.readouterr().out
    resume_run(stopped, {"iterations": 10_000, "minutes": 1.2 * spent / 60})
    assert STOPPED < last_iteration(stopped) < 10_000


def test_a_run_that_its_minutes_ended_is_finished(face_folder, tmp_path, capsys):
    """Evaluations and saving are part of the time, also of the time in the checkpoint."""
    out = tmp_path / "run"
    train(small_config(face_folder, out, iterations=10_000, minutes=0.01, eval_every=1))
    iteration = last_iteration(out)
    resume_run(out, {})
    assert "is finished" in capsys.readouterr().out and last_iteration(out) == iteration


def test_settings_that_would_make_another_run_are_refused_by_name(stopped):
    with pytest.raises(
        FastaeError, match=r"--loss minibatch_bce, not pixel_mse, --lr 0.0001, not 0.1: start a"
    ):
        resume_run(stopped, {"lr": 0.1, "seed": 5, "loss": "pixel_mse"})


def test_a_list_of_other_images_is_refused(stopped):
    images = RunFolder(stopped).read_manifest()
    replace(images, train=dict(reversed(images.train.items()))).write(stopped / "images.json")
    with pytest.raises(FastaeError, match=r"images.json' lists other images"):
        resume_run(stopped, {})
    (stopped / "images.json").unlink()
    with pytest.raises(FastaeError, match=r"images.json'.* cannot be read"):
        resume_run(stopped, {})


def test_moved_data_are_found_by_the_option_data_and_other_data_are_refused(
    stopped, face_folder, tmp_path, uninterrupted
):
    moved = tmp_path / "moved"
    shutil.copytree(face_folder, moved)
    first, second, third, *_ = sorted(moved.glob("*.jpg"))
    content = third.read_bytes()
    third.write_bytes(content + bytes(1))
    with pytest.raises(FastaeError, match=f"{moved}' does not hold the images of the run: .*{third.name}"):
        resume_run(stopped, {"data": str(moved)})
    third.write_bytes(content)
    resume_run(stopped, {"data": str(moved)})
    assert_the_same(stopped, uninterrupted())
    first.unlink()
    second.unlink()
    with pytest.raises(FastaeError, match=f"{moved}' does not hold the images of the run: 2 of 40 files"):
        resume_run(stopped, {"iterations": LENGTH + 1})


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_file_that_went_bad_before_a_resume_does_not_end_the_run(face_folder, tmp_path, capsys, loader):
    """As in mid-run, the next file is read instead, and no other image changes its place."""
    data, run, other = tmp_path / "data", tmp_path / "run", tmp_path / "other"
    shutil.copytree(face_folder, data)
    train(small_config(data, run, **SETTINGS | {"iterations": 4}, loader=loader))
    copied(run, other)
    bad, substitute, *_ = sorted(data.glob("*.jpg"))
    bad.unlink()
    (data / "000.jpg").write_bytes(substitute.read_bytes())  # a new file, first by name
    for until in (6, 11):
        resume_run(run, {"iterations": until})
    assert (run / "skipped.txt").read_text() == f"gone\t{bad}\n"

    # The same by hand: the lost file becomes a copy of the substitute, and the manifest lists the copy.
    bad.write_bytes(substitute.read_bytes())
    images = RunFolder(other).read_manifest()
    begin_with(other, replace(images, train={**images.train, bad.name: bad.stat().st_size}, digests={}))
    resume_run(other, {"iterations": 11})
    assert same_state(last_training(run), last_training(other))
    assert curve(run) == curve(other)


def test_another_version_is_reported(stopped, capsys):
    """Versions are compared with the checkpoint's, since config.json may be of a later session."""
    last = checkpoint.newest(stopped / "checkpoints", print)
    environment = last.description.environment
    assert environment == RunFolder(stopped).read_description().environment
    older = replace(environment, packages={**environment.packages, "torch": "1.0"})
    checkpoint.write(
        stopped / "checkpoints",
        replace(last, description=replace(last.description, environment=older)),
        keep=1,
    )
    resume_run(stopped, {"iterations": STOPPED + 1})
    assert f"torch was 1.0, is {torch.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", '{"config": {"loss": "minibatch_bce", "os": "system"}}'])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    for folder in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(FastaeError, match=str(folder)):
            resume_run(folder, {})


def test_a_second_run_in_a_folder_is_refused(stopped, face_folder):
    with RunFolder(stopped).lock():
        with pytest.raises(FastaeError, match="is locked by another run"):
            resume_run(stopped, {})
        with pytest.raises(FastaeError, match="is not empty"):
            train(small_config(face_folder, stopped))
