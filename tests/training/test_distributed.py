"""Two CPU processes under torchrun: one batch shared, one log, one checkpoint; and what if one dies."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.augment import Augmentation
from fastae.data import open_loader
from fastae.data.check import FileFault
from fastae.data.jpeg import Fault
from fastae.data.sampler import Sampler
from fastae.errors import FastaeError
from fastae.runs.folder import RunFolder
from fastae.training.distributed import Ranks
from fastae.training.resume import resume_run
from fastae.training.runner import train
from fastae.training.session import open_session
from fastae.utils.console import console

from ..commands import SMALL, curve, last_state, started, wait_for
from ..conftest import small_config

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastae",
)  # fmt: skip
SOAK = bool(os.environ.get("FASTAE_SOAK"))
RUN = [*SMALL, "--log-every", 1, "--gpu-sample-hz", 0, "--seed", 2]


def in_two(*arguments, cwd=None):
    """Runs fastae in two ranks to its end; returns what they print."""
    with started(*arguments, command=TORCHRUN, cwd=cwd) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_the_parts_of_a_batch_are_the_batch():
    whole = Sampler(50, 12, 3, Augmentation())
    parts = [Sampler(50, 12, 3, Augmentation(), part, 3) for part in range(3)]
    for iteration in (0, 4, 9):
        for name in ("indices", "flip", "brightness", "contrast", "saturation"):
            shared = np.concatenate([getattr(part.at(iteration), name) for part in parts])
            assert np.array_equal(shared, getattr(whole.at(iteration), name)), name


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_the_ranks_batches_are_the_one_process_batch(face_paths, kind):
    def batch(**part):
        loader = open_loader(
            face_paths, kind=kind, batch_size=8, device="cpu", seed=1, compiled=False, cache=None, **part
        )
        return next(loader.batches(2)).clone()

    shared = torch.cat([batch(part=0, parts=2), batch(part=1, parts=2)])
    assert torch.equal(shared, batch())


def test_a_batch_that_cannot_be_shared_equally_is_refused(face_paths):
    with pytest.raises(FastaeError, match="--batch-size 8 cannot be shared equally by 3 ranks"):
        open_loader(face_paths, batch_size=8, device="cpu", seed=1, parts=3)


def test_a_bad_file_that_another_rank_finds_is_logged_and_listed_once(
    small_run, face_folder, tmp_path, capsys
):
    run, bad = RunFolder(tmp_path), FileFault(f"{face_folder}/000001.jpg", Fault.TRUNCATED)
    session = open_session(small_config(face_folder), Ranks(1, 2, 1))
    session.runs.append(run)
    console.quiet = True  # as on all ranks but the main one
    try:
        for _ in range(2):
            session.report_replaced(bad, "000002.jpg")
    finally:
        console.quiet = False
    assert capsys.readouterr().out.count(bad.path) == 2
    assert run.skipped.read_text() == f"truncated\t{bad.path}\n"


def test_two_ranks_train_what_one_process_trains(face_folder, tmp_path):
    """With --sync-bn. Compared are gradients, as Adam's first moments have them, and batch statistics:
    rounding may flip a single ReLU, which changes them by less than 1 %, but Adam's first step is their sign.
    """
    one = train(small_config(face_folder, tmp_path / "one", log_every=1, seed=2, iterations=1))
    two = tmp_path / "two"
    output = in_two("train", "--data", face_folder, *RUN, "--iterations", 1, "--out", two, "--sync-bn")
    assert "2 ranks" in output and output.count("iteration 0:") == 1  # rank 0 alone logs
    ours, theirs = last_state(two), last_state(one)
    assert ours["model"].keys() == theirs["model"].keys()
    for index, moments in theirs["optimizer"]["state"].items():
        gradient = moments["exp_avg"]
        assert (ours["optimizer"]["state"][index]["exp_avg"] - gradient).norm() < 0.05 * gradient.norm()
    for name, value in theirs["model"].items():
        if "running" in name:
            torch.testing.assert_close(ours["model"][name], value, rtol=1e-4, atol=1e-5)
    assert curve(two)[0][1] == pytest.approx(curve(one)[0][1], rel=1e-3)
    if SOAK:  # without, each rank normalises its own slice
        own = tmp_path / "own"
        in_two("train", "--data", face_folder, *RUN, "--iterations", 1, "--out", own)
        assert curve(own)[0][1] != pytest.approx(curve(two)[0][1], rel=1e-4)


def test_a_killed_rank_ends_the_job_with_a_clear_line_and_whole_files(face_folder, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--data", face_folder, *RUN, "--out", out, "--checkpoint-every", 2]
    with started(*arguments, command=TORCHRUN) as process:
        wait_for(process, "6/100,000")
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("fastae: error:")]
    assert "another rank ended" in line and f"fastae train --resume {out}" in line
    assert not list(out.glob("**/*.partial"))
    iteration = last_state(out)["iteration"]
    resume_run(out, {"iterations": iteration + 1})
    assert [step for step, _ in curve(out)] == list(range(1, iteration + 2))


def test_a_signal_stops_all_ranks_at_one_iteration(face_folder, tmp_path):
    out = tmp_path / "run"
    with started("train", "--data", face_folder, *RUN, "--out", out, command=TORCHRUN) as process:
        wait_for(process, "3/100,000")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert "stopped by SIGTERM at iteration" in errors
    assert last_state(out)["iteration"] % 10 == 0  # where the ranks agree


def test_a_sweep_is_dealt_out_over_the_ranks_in_the_folder_of_the_first(face_folder, tmp_path):
    losses = ["minibatch_bce", "minibatch_mse", "pixel_bce"]
    arguments = ["sweep", "--losses", ",".join(losses), "--data", face_folder, *RUN, "--iterations", 1]
    output = in_two(*arguments, cwd=tmp_path)
    (out,) = (tmp_path / "runs").iterdir()
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [(run["name"], run["state"]) for run in runs] == [(loss, "finished") for loss in losses]
    assert "minibatch_mse: run" not in output  # the other rank's
    assert all(last_state(out / loss)["iteration"] == 1 for loss in losses)
    manifests = {(out / loss / "images.json").read_text() for loss in losses}
    assert manifests == {(out / "images.json").read_text()}


def _rank(agent, number):
    """The process of this rank among torchrun's children."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {number}")
