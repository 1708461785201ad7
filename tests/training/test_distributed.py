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
from fastae.data import Tuning, open_loader
from fastae.data.sampler import Sampler
from fastae.errors import FastaeError

from ..commands import SMALL, curve, fastae, last_state, started, wait_for

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastae",
)  # fmt: skip
SOAK = bool(os.environ.get("FASTAE_SOAK"))
RUN = [*SMALL, "--log-every", 1, "--gpu-sample-hz", 0, "--seed", 2]


def in_two(*arguments, cwd=None):
    """Runs fastae in two ranks to its end: (exit code, output, errors)."""
    with started(*arguments, command=TORCHRUN, cwd=cwd) as process:
        output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_the_parts_of_a_plan_are_the_plan():
    whole = Sampler(50, 12, 3, Augmentation())
    parts = [Sampler(50, 12, 3, Augmentation(), part, 3) for part in range(3)]
    for iteration in (0, 4, 9):
        for name in ("indices", "flip", "brightness", "contrast", "saturation"):
            shared = np.concatenate([getattr(part.at(iteration), name) for part in parts])
            assert np.array_equal(shared, getattr(whole.at(iteration), name)), name


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_the_ranks_batches_are_the_one_process_batch(face_paths, kind):
    def batch(shard=(0, 1)):
        loader = open_loader(
            face_paths,
            kind=kind,
            batch_size=8,
            device="cpu",
            seed=1,
            shard=shard,
            cache=False,
            tuning=Tuning(compiled=False),
        )
        return next(loader.batches(2)).clone()

    shared = torch.cat([batch((0, 2)), batch((1, 2))])
    assert torch.equal(shared, batch())


def test_a_batch_that_cannot_be_shared_equally_is_refused(face_paths):
    with pytest.raises(FastaeError, match="--batch-size 8 cannot be shared equally by 3 ranks"):
        open_loader(face_paths, batch_size=8, device="cpu", seed=1, shard=(0, 3))


def test_two_ranks_train_what_one_process_trains(face_folder, tmp_path):
    """With --sync-bn. Compared are gradients, as Adam's first moments have them, and batch statistics:
    rounding may flip a single ReLU, which changes them by less than 1 %, but Adam's first step is their sign.
    """
    common = ["train", "--data", face_folder, *RUN, "--iterations", 1]
    assert fastae(*common, "--out", tmp_path / "one").returncode == 0
    code, output, errors = in_two(*common, "--out", tmp_path / "two", "--sync-bn")
    assert code == 0, errors
    assert "2 ranks" in output and output.count("iteration 0:") == 1  # rank 0 alone speaks
    ours, theirs = last_state(tmp_path / "two"), last_state(tmp_path / "one")
    assert ours["model"].keys() == theirs["model"].keys()
    for index, moments in theirs["optimizer"]["state"].items():
        gradient = moments["exp_avg"]
        assert (ours["optimizer"]["state"][index]["exp_avg"] - gradient).norm() < 0.05 * gradient.norm()
    for name, value in theirs["model"].items():
        if "running" in name:
            torch.testing.assert_close(ours["model"][name], value, rtol=1e-4, atol=1e-5)
    assert [value for _, value in curve(tmp_path / "two")] == pytest.approx(
        [value for _, value in curve(tmp_path / "one")], rel=1e-3
    )


@pytest.mark.skipif(not SOAK, reason="in the long form: make soak")
def test_without_sync_bn_the_ranks_normalise_each_their_own(face_folder, tmp_path):
    losses = {}
    for name, option in (("own", []), ("shared", ["--sync-bn"])):
        code, _, errors = in_two(
            "train", "--data", face_folder, *RUN, "--iterations", 1, "--out", tmp_path / name, *option
        )
        assert code == 0, errors
        losses[name] = curve(tmp_path / name)[0][1]
    assert losses["own"] != pytest.approx(losses["shared"], rel=1e-4)


def test_a_killed_rank_ends_the_job_with_a_clear_line_and_whole_files(face_folder, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--data", face_folder, *RUN, "--out", out, "--checkpoint-every", 2]
    with started(*arguments, command=TORCHRUN) as process:
        wait_for(process, "6/100,000")
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("fastae: error:")]
    assert "another rank ended, or cannot be reached" in line and f"fastae train --resume {out}" in line
    assert not list(out.glob("**/*.partial"))
    iteration = last_state(out)["iteration"]
    code, _, errors = in_two("train", "--resume", out, "--iterations", iteration + 2)
    assert code == 0, errors
    assert [step for step, _ in curve(out)] == list(range(1, iteration + 3))


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
    arguments = ["sweep", "--losses", ",".join(losses), "--data", face_folder, *RUN, "--iterations", 2]
    code, output, errors = in_two(*arguments, cwd=tmp_path)
    assert code == 0, errors
    (out,) = (tmp_path / "runs").iterdir()
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [(run["name"], run["state"]) for run in runs] == [(loss, "finished") for loss in losses]
    assert "minibatch_mse: run" not in output  # the other rank's
    assert all(last_state(out / loss)["iteration"] == 2 for loss in losses)


def test_a_folder_that_is_in_use_is_refused_by_the_first_rank_alone(face_folder, tmp_path):
    (tmp_path / "precious").touch()
    code, _, errors = in_two("train", "--data", face_folder, *RUN, "--out", tmp_path)
    assert code != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("fastae: error:")]
    assert "is not empty" in line


def _rank(agent, number):
    """The process of this rank among torchrun's children."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {number}")
