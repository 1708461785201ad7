"""Two CPU processes under torchrun share one batch, one log and one checkpoint; one of them may die."""

import os
import signal
import sys
from pathlib import Path

import click
import pytest
import torch
import torch.distributed as dist

from fastae.cli import main
from fastae.data import open_loader
from fastae.data.files.faults import Fault, FileFault
from fastae.data.loaders import choose
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.runs.folder import RunFolder
from fastae.training import distributed
from fastae.training.distributed import Ranks, joined
from fastae.training.resume import resume_run
from fastae.training.session import open_session
from fastae.utils.console import console

from ..commands import (
    NARROW,
    SMALL,
    TORCHRUN,
    curve,
    last_iteration,
    started,
    two_ranks_train_as_one,
    wait_for,
)
from ..helpers import small_config

RUN = [*SMALL, "--log-every", 1, "--gpu-sample-hz", 0, "--seed", 2]


def test_a_batch_that_cannot_be_shared_equally_is_refused(face_paths):
    with pytest.raises(FastaeError, match="batch_size 8 cannot be shared equally by 3 ranks"):
        open_loader(face_paths, batch_size=8, device="cpu", seed=1, shard=(0, 3))


@pytest.mark.parametrize(
    ("ranks", "launched", "times"),
    [(Ranks(1, 2, 1), True, 2), (Ranks(), True, 2), (Ranks(), False, 0)],
    ids=["a rank of a run", "a rank of a sweep", "quiet=True"],
)
def test_a_bad_file_is_logged_by_the_rank_that_finds_it_unless_the_user_wants_quiet(
    small_run, face_folder, tmp_path, capsys, monkeypatch, ranks, launched, times
):
    monkeypatch.setattr(console, "quiet", False)  # is restored
    if launched:
        for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
    run, bad = RunFolder(tmp_path), FileFault(f"{face_folder}/000001.jpg", Fault.TRUNCATED)
    session = open_session(small_config(face_folder, loader="dali"), ranks)
    session.replaced.runs.append(run)
    capsys.readouterr()
    monkeypatch.setattr(console, "quiet", True)  # as on all ranks but the main one, or by quiet=True
    for _ in range(2):
        session.replaced.add(bad, "000002.jpg")
    assert capsys.readouterr().out.count(bad.path) == times
    assert run.skipped_file.read_text() == f"truncated\t{bad.path}\n"


@pytest.mark.parametrize(("free", "kind"), [((0, 2**40), "dali"), ((2**40, 0), "resident")])
def test_all_ranks_use_the_loader_that_fits_into_the_main_ranks_memory(face_folder, monkeypatch, free, kind):
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_torchrun_store", lambda: store)
    for rank, memory in enumerate(free):
        monkeypatch.setattr(choose, "free_memory", lambda device, memory=memory: memory)
        session = open_session(small_config(face_folder, device="cpu"), Ranks(rank, 2, rank))
        assert session.loader.kind == kind


def test_two_ranks_train_what_one_process_trains_and_stop_at_the_same_iteration(face_folder, tmp_path):
    two_ranks_train_as_one(face_folder, tmp_path, "--device", "cpu", "--gpu-sample-hz", 0)


def test_a_killed_rank_ends_the_job_with_a_clear_line_and_whole_files(face_folder, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--data", face_folder, *RUN, "--out", out, "--checkpoint-every", 2]
    with started(*arguments, command=(*TORCHRUN, NARROW[-1])) as process:
        wait_for(process, "6/100,000")
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("fastae: error:")]
    assert "another rank ended" in line and f"fastae train --resume {out}" in line
    assert not list(out.glob("**/.partial-*"))
    iteration = last_iteration(out)
    resume_run(out, {"iterations": iteration + 1})
    assert [step for step, _ in curve(out)] == list(range(1, iteration + 2))


@pytest.fixture
def group(monkeypatch):
    """The calls that make and destroy the process group, and the exit codes of processes that end at once."""
    calls = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: calls.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(calls) and calls[-1] != "destroy")
    monkeypatch.setattr(os, "_exit", calls.append)
    return calls


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (None, ["destroy"]),
        (Stopped(signal.SIGTERM, "stopped"), ["destroy"]),
        (RunFailure("no space left"), [1]),
        (ZeroDivisionError("division"), [1]),
        (KeyboardInterrupt(), [130]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_rank_leaves_its_group_in_order_but_ends_at_once_after_an_exception(
    group, monkeypatch, capsys, error, ends
):
    """If a rank left its group after an exception, NCCL would wait for ten minutes. gloo does not wait."""

    @click.command()
    def command():
        with joined(Ranks(1, 2, 1), torch.device("cuda", 1)):
            if error:
                raise error

    monkeypatch.setattr(main, "cli", command)
    monkeypatch.setattr(sys, "argv", ["fastae"])
    with pytest.raises(SystemExit):
        main.main()
    assert group == ["nccl", *ends]
    errors = capsys.readouterr().err
    assert str(error or "") in errors and ("Traceback" in errors) is isinstance(error, ZeroDivisionError)


def _rank(agent, number):
    """Returns the process id of this rank among torchrun's children."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {number}")
