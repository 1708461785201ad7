"""What can happen to a run from outside: one clear line, the checkpoints as they were, an exit code of 1."""

import multiprocessing
import os
import random
import resource
import shutil
import time

import pytest
import torch

from fastae.config import TrainConfig
from fastae.data.pipeline import Pipeline
from fastae.errors import FastaeError, RunFailure
from fastae.model import meta_model
from fastae.training import trainer as loop
from fastae.training.out_of_memory import activation_bytes, fitting_batch, training_bytes
from fastae.training.resume import resume
from fastae.training.runner import train
from fastae.training.step import TrainingStep

from ..commands import SMALL, curve, fastae, last_state, same_state, started, wait_for

OPENED = 1
"""Batches that DALI decodes before training: the held-out images."""

RUN = [*SMALL, "--log-every", 2, "--gpu-sample-hz", 0, "--checkpoint-every", 4]
FULL = "File too large"
"""The kernel's word where a limit stands in for a full disk: write() fails in the same place and way."""


@pytest.fixture(scope="module")
def whole(face_folder, tmp_path_factory):
    """A run of eight iterations."""
    run = tmp_path_factory.mktemp("faults") / "run"
    result = fastae("train", "--data", face_folder, "--out", run, *RUN, "--iterations", 8)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def settings(face_folder, out, **others):
    return TrainConfig(
        data=str(face_folder), out=str(out), image_size=32, latent=16, batch_size=4, compile=False,
        log_every=2, checkpoint_every=4, gpu_sample_hz=0, **{"iterations": 8} | others,
    )  # fmt: skip


def limited_to(number):
    """Files of at most so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


def failed(result):
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastae: error: ")
    return line


def test_a_disk_that_is_full_while_saving_costs_no_checkpoint(run):
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").glob("0*")}
    result = fastae("train", "--resume", run, "--iterations", 40, preexec=limited_to(50_000_000))
    line = failed(result)
    assert FULL in line and str(run) in line
    assert line.endswith(f"iteration 8 is saved; fastae train --resume {run}")
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").glob("0*")} == before
    assert not list(run.glob("**/*.partial"))
    again = fastae("train", "--resume", run)  # 40 iterations are in its config by now
    assert again.returncode == 0 and last_state(run)["iteration"] == 40
    assert [step for step, _ in curve(run)] == [1, *range(2, 41, 2)]


def test_a_failed_save_is_told_at_once_and_not_at_the_next(run):
    limit = limited_to(50_000_000)
    options = ("--device", "cpu", "--iterations", 100_000, "--checkpoint-every", 50)
    started_at = time.monotonic()
    result = fastae("train", "--resume", run, *options, preexec=limit)
    assert FULL in failed(result)
    assert max(step for step, _ in curve(run)) < 100
    assert time.monotonic() - started_at < 60


@pytest.mark.parametrize("latent", [2**20, 2**33])
def test_a_model_too_large_to_be_trained_is_refused_before_anything_is_begun(face_folder, tmp_path, latent):
    out = tmp_path / "run"
    result = fastae("train", "--data", face_folder, "--out", out, "--device", "cpu", "--latent", latent)
    assert result.returncode == 2 and not out.exists()
    (line,) = result.stderr.splitlines()
    assert str(latent) in line
    assert ("GB to train, and cpu has" in line) == (latent == 2**20)


def test_a_disk_that_is_full_while_events_are_written(face_folder, tmp_path):
    out = tmp_path / "run"
    arguments = [*RUN, "--no-cache", "--checkpoint-every", 1000, "--eval-every", 2, "--iterations", 100]
    result = fastae("train", "--data", face_folder, "--out", out, *arguments, preexec=limited_to(100_000))
    line = failed(result)
    assert FULL in line and "nothing was saved yet" in line


@pytest.mark.parametrize("how", ["removed", "a file in its place"])
def test_a_run_folder_that_goes_in_mid_run(face_folder, tmp_path, how):
    out = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", out, *RUN) as process:
        wait_for(process, "2/100,000")
        out.rename(tmp_path / "elsewhere")
        if how != "removed":
            out.write_text("")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert "cannot write to the run folder" in line and str(out) in line


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_run_folder_that_becomes_read_only(face_folder, tmp_path):
    out = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", out, *RUN) as process:
        wait_for(process, "2/100,000")
        (out / "checkpoints").chmod(0o500)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Permission denied" in errors


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(face_folder, tmp_path):
    out = tmp_path / "run"
    # With such weights the second forward pass overflows.
    line = failed(fastae("train", "--data", face_folder, "--out", out, *RUN, "--lr", 9e18))
    assert "the loss is not finite at iteration 2" in line and str(out / "nan.txt") in line
    listed = (out / "nan.txt").read_text().splitlines()
    assert len(listed) == 4
    assert all(entry.startswith(f"2\t{face_folder}/") for entry in listed)
    assert not list((out / "checkpoints").glob("0*"))


def test_skipped_steps_leave_the_weights_as_they_were(face_folder, tmp_path, monkeypatch, capsys):
    measure = TrainingStep._step

    def poisoned(step, *inputs):
        if poisoned.count in (3, 6):
            original = step.images_of
            step.images_of = lambda *values: original(*values) * torch.nan
            result = measure(step, *inputs)
            step.images_of = original
        else:
            result = measure(step, *inputs)
        poisoned.count += 1
        return result

    poisoned.count = 1
    monkeypatch.setattr(TrainingStep, "_step", poisoned)
    train(settings(face_folder, tmp_path / "run", on_nan="skip"))
    said = capsys.readouterr().out
    assert [f"not finite at iteration {at} " in said for at in range(1, 9)] == [
        at in (3, 6) for at in range(1, 9)
    ]
    state = last_state(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert state["optimizer"]["state"][0]["step"] == 6  # of eight
    # At iteration 6 the loss was logged: the point is left out, not drawn.
    assert [step for step, _ in curve(tmp_path / "run")] == [1, 2, 4, 8]


def test_skipping_ends_when_nothing_else_happens(face_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SKIPPED_IN_A_ROW", 10)
    config = settings(face_folder, tmp_path / "run", on_nan="skip", lr=9e18, iterations=1000)
    with pytest.raises(RunFailure, match=r"not finite at iteration 11 .* nor in the 9 before it"):
        train(config)


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_a_state_that_is_not_finite_is_not_saved(face_folder, tmp_path, monkeypatch, what):
    step = TrainingStep._step

    def poisoned(self, *inputs):
        step(self, *inputs)
        weight = self.model.encoder[0].weight
        poison = weight if what == "weights" else self.optimizer.state[weight]["exp_avg_sq"]
        with torch.no_grad():
            poison[0, 0, 0, 0] = torch.inf
        return torch.ones(()), torch.ones(())

    monkeypatch.setattr(TrainingStep, "_step", poisoned)
    with pytest.raises(RunFailure, match="not finite before"):
        train(settings(face_folder, tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").glob("0*"))


def test_out_of_memory_says_which_batch_would_fit(face_folder, tmp_path, monkeypatch):
    def exhausted(self, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(TrainingStep, "_step", exhausted)
    with pytest.raises(RunFailure, match=r"out of memory .* --batch-size 2 or --loader dali"):
        train(settings(face_folder, tmp_path / "run"))


def test_the_batch_that_fits_follows_from_the_model():
    config = TrainConfig()
    model = meta_model(config.image_size, config.latent)
    weights, activations = training_bytes(model), activation_bytes(model, config.image_size)
    assert 42e6 < weights / 16 < 43e6
    # fp32, an image: each of the ten layers' outputs once before and once after its batch norm, at least.
    assert 20e6 < activations < 200e6
    assert fitting_batch(config, weights + int(2.0 * activations * 100)) == 64
    assert fitting_batch(config, weights + int(2.0 * activations * 40)) == 32
    assert fitting_batch(config, 10_000_000) == 0


def test_an_error_of_dalis_ends_the_run_in_one_line(face_folder, tmp_path, monkeypatch):
    healthy = Pipeline.run

    given = []

    def failing(self, stream):
        given.append(healthy(self, stream))
        if len(given) > 5 + OPENED:
            raise RuntimeError("Critical error in pipeline:\nworker thread 3 died")
        return given[-1]

    monkeypatch.setattr(Pipeline, "run", failing)
    with pytest.raises(
        RunFailure, match="the loader failed at iteration 6: DALI failed: Critical error in pipeline; iter"
    ):
        train(settings(face_folder, tmp_path / "run", loader="dali"))
    assert last_state(tmp_path / "run")["iteration"] == 4


def test_a_clock_that_jumps_changes_nothing(face_folder, tmp_path, monkeypatch, whole):
    jumps, clock = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + jumps.uniform(-1e6, 1e6))
    train(settings(face_folder, tmp_path / "run", iterations=5))
    resume(tmp_path / "run", {"iterations": 8})
    assert same_state(last_state(tmp_path / "run")["model"], last_state(whole)["model"])
    assert curve(tmp_path / "run")[-1] == curve(whole)[-1]


def _train_in_child(config, outcome):
    try:
        train(config)
        outcome.put("trained")
    except FastaeError as error:
        outcome.put(str(error))


def test_a_fork_of_a_process_that_trained_is_refused_not_hung(face_folder, tmp_path):
    train(settings(face_folder, tmp_path / "parent", iterations=1))
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    child = context.Process(target=_train_in_child, args=(settings(face_folder, tmp_path / "a"), outcome))
    child.start()
    assert "fork" in outcome.get(timeout=30)
    child.join(10)
    assert not child.is_alive()
