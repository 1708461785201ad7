"""Faults from outside end a run with one clear line and exit code 1. Its checkpoints stay as they were."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from subprocess import CalledProcessError

import pytest
import torch
from torch._inductor.exc import CppCompileError

from fastae.data.files.inspect import inspect
from fastae.data.loaders.pipeline import Pipeline
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.experiment import model
from fastae.training.resume import resume_run
from fastae.training.runner import train
from fastae.training.session import Session
from fastae.training.step.step import TrainingStep

from .. import narrow
from ..commands import curve, last_iteration, last_training, same_state, wait_until
from ..helpers import at_iteration, largest_file, no_more_files, small_config

OPENED = 1
"""Batches that DALI decodes before training: the held-out images."""

FULL = "File too large"
"""The kernel's message if a limit simulates a full disk: write() fails in the same place and way."""


def settings(face_folder, out, **others):
    return small_config(face_folder, out, **{"iterations": 8, "log_every": 2, "checkpoint_every": 4} | others)


def files(run):
    """Returns name -> content of a run's checkpoints."""
    return {path.name: path.read_bytes() for path in (run / "checkpoints").glob("0*")}


@pytest.mark.parametrize("latent", [2**20, 2**33])
def test_a_model_too_large_to_be_trained_is_refused_before_anything_is_begun(
    face_folder, tmp_path, monkeypatch, latent
):
    for name, channels in narrow.ARTICLES.items():
        monkeypatch.setattr(model, name, channels)
    with pytest.raises(FastaeError, match=str(latent) if latent > 2**20 else "GB, but cpu has") as no:
        train(settings(face_folder, tmp_path / "run", device="cpu", latent=latent))
    assert no.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_full_disk_while_events_are_written_ends_the_run(face_folder, tmp_path):
    config = settings(
        face_folder, tmp_path / "run", iterations=100, eval_every=2, checkpoint_every=None, loader="dali"
    )
    with largest_file(100_000), pytest.raises(RunFailure, match=f"{FULL}.*nothing was saved yet"):
        train(config)


@pytest.mark.parametrize("how", ["removed", "replaced by a file", "read-only"])
def test_a_run_folder_that_becomes_unusable_ends_the_run(face_folder, tmp_path, monkeypatch, how):
    out = tmp_path / "run"
    if how == "read-only" and os.geteuid() == 0:
        pytest.skip("nothing is read-only to root")

    def change():
        if how == "read-only":
            (out / "checkpoints").chmod(0o500)
            return
        out.rename(tmp_path / "elsewhere")
        if how == "replaced by a file":
            out.write_text("")

    at_iteration(monkeypatch, 2, change)
    with pytest.raises(RunFailure, match=f"cannot write to the run folder '{out}'"):
        train(settings(face_folder, out))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(face_folder, tmp_path):
    out = tmp_path / "run"
    # With such weights the second forward pass overflows.
    with pytest.raises(RunFailure, match=f"not finite at iteration 2 .*{out / 'nan.txt'}") as failure:
        train(settings(face_folder, out, lr=9e18))
    line = str(failure.value)
    assert "start a new run with a lower --lr" in line and "--resume" not in line
    listed = (out / "nan.txt").read_text().splitlines()
    assert len(listed) == 4
    assert all(entry.startswith(f"2\t{face_folder}/") for entry in listed)
    assert not files(out)


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_a_state_that_is_not_finite_is_not_saved(face_folder, tmp_path, monkeypatch, what):
    def poisoned(step, *inputs):
        name = "encoder.0.weight"
        poisoned = step.model.get_parameter(name) if what == "weights" else step.optimizer.square[name]
        with torch.no_grad():
            poisoned.fill_(torch.inf)
        for weight in step.model.parameters():
            weight.grad = torch.zeros_like(weight)
        return torch.ones(()), torch.ones(())

    monkeypatch.setattr(TrainingStep, "_step", poisoned)
    with pytest.raises(RunFailure, match="not finite before"):
        train(settings(face_folder, tmp_path / "run"))
    assert not files(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "out of memory .* --loader dali .* or a new run with --batch-size 2; .*resume with",
        ),
        (MemoryError(), "out of memory"),
        (CalledProcessError(1, "g++"), "torch.compile failed.* use --no-compile; .*resume with"),
        (CppCompileError(["g++"], "no such header"), r"torch\.compile failed.* --no-compile"),
        (RuntimeError("could not create a primitive"), "out of memory"),
        (RuntimeError("can't start new thread"), "ulimit -u.*nothing was saved yet; resume with"),
        (OSError(5, "I/O error", "/elsewhere"), "cannot use '/elsewhere': I/O error; nothing was saved yet"),
    ],
    ids=repr,
)
def test_what_runs_out_or_fails_in_a_step_has_its_remedy(face_folder, tmp_path, monkeypatch, error, line):
    def exhausted(self, *inputs):
        raise error

    monkeypatch.setattr(TrainingStep, "_step", exhausted)
    with pytest.raises(RunFailure, match=line):
        train(settings(face_folder, tmp_path / "run"))


def test_memory_that_runs_out_before_a_run_has_begun_has_its_remedy_alone(face_folder, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(Session, "new_step", exhausted)
    with pytest.raises(RunFailure, match=r"a new run with --batch-size 2$"):
        train(settings(face_folder, tmp_path / "run"))


def test_an_error_of_dali_ends_the_run_in_one_line(face_folder, tmp_path, monkeypatch):
    healthy, given = Pipeline.run, []

    def failing(self, stream):
        given.append(healthy(self, stream))
        if len(given) > 5 + OPENED:
            raise RuntimeError("Critical error in pipeline:\nworker thread 3 died")
        return given[-1]

    monkeypatch.setattr(Pipeline, "run", failing)
    with pytest.raises(
        RunFailure, match="failed at iteration 6: DALI failed: Critical error in pipeline; iter"
    ):
        train(settings(face_folder, tmp_path / "run", loader="dali"))
    assert last_iteration(tmp_path / "run") == 4


def test_a_clock_that_is_set_back_between_two_sessions_changes_nothing(face_folder, tmp_path, monkeypatch):
    """Another host's clock may be behind. TensorBoard reads the files in the order of their names."""
    clock, run = time.time, tmp_path / "run"
    at_iteration(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(settings(face_folder, run, iterations=9, log_every=1))
    (run / "checkpoints" / "0000007.safetensors").unlink()  # as if it had been killed after the one before
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: clock() - 1e6)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    resume_run(run, {})
    assert [step for step, _ in curve(run)] == list(range(1, 10))
    whole = train(settings(face_folder, tmp_path / "whole", iterations=9, log_every=1))
    assert curve(run) == curve(whole) and same_state(*map(last_training, (run, whole)))


def _train_in_child(config, outcome):
    try:
        train(config)
        outcome.put("trained")
    except FastaeError as error:
        outcome.put(str(error))


def test_a_fork_of_a_process_that_trained_is_refused_not_hung(face_folder, tmp_path):
    train(settings(face_folder, tmp_path / "trained", iterations=1))
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    child = context.Process(target=_train_in_child, args=(settings(face_folder, tmp_path / "a"), outcome))
    child.start()
    assert "fork" in outcome.get(timeout=600)
    child.join(10)
    assert not child.is_alive()


def test_too_many_threads_are_reported_with_the_limit_to_raise(face_folder, tmp_path, monkeypatch):
    def refused(pipeline):
        raise RuntimeError(
            "Critical error:\n\nResource temporarily unavailable\nCurrent pipeline is invalid."
        )

    monkeypatch.setattr(Pipeline, "build", refused)
    with pytest.raises(FastaeError, match=r"no more threads.*ulimit -u") as no:
        train(settings(face_folder, tmp_path / "run"))
    assert no.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_without_a_temporary_folder_nothing_is_begun(face_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("FASTAE_CACHE", "/proc/nowhere")  # otherwise torch.compile's files would be there
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    with pytest.raises(FastaeError, match="TMPDIR") as no:
        train(settings(face_folder, tmp_path / "run"))
    assert no.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_files_that_cannot_be_opened_are_not_called_gone(face_folder, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def exhaust(self, stream):
        monkeypatch.undo()
        monkeypatch.setattr("fastae.data.files.recovery.inspect", no_files)
        raise RuntimeError("Too many open files")

    def no_files(path):
        with no_more_files():
            return inspect(path)

    at_iteration(monkeypatch, 3, lambda: monkeypatch.setattr(Pipeline, "run", exhaust))
    with pytest.raises(RunFailure, match=r"Too many open files.*ulimit -n.*resume with"):
        train(settings(face_folder, run, loader="dali"))
    assert not (run / "skipped.txt").exists()


def test_the_pictures_folder_is_made_again(face_folder, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def remove():
        wait_until((run / "samples" / "0000000.png").exists)  # a thread draws it
        shutil.rmtree(run / "samples")

    at_iteration(monkeypatch, 3, remove)
    train(settings(face_folder, run))
    assert [path.name for path in (run / "samples").iterdir()] == ["0000008.png"]
    shutil.rmtree(run / "samples")
    resume_run(run, {"iterations": 9})
    assert [path.name for path in (run / "samples").iterdir()] == ["0000009.png"]
