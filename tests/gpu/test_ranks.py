"""Two GPUs and NCCL: two ranks train what one does, and one that fails ends the job of both."""

import subprocess

import pytest
import torch

from ..commands import SMALL, TORCHRUN, two_ranks_train_as_one

PROGRAM = """
import os
from fastae.cli.main import main
from fastae.training.step.step import TrainingStep

train, calls = TrainingStep.__call__, []

def failing(step, *inputs):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 25:
        raise ZeroDivisionError("on purpose")
    return train(step, *inputs)

TrainingStep.__call__ = failing
main()
"""

LIMIT = 300.0
"""Seconds: NCCL waits for 600."""


@pytest.fixture(scope="module", autouse=True)
def _articles():
    """This process keeps the narrow model, which the ranks that it starts have."""


@pytest.fixture(autouse=True)
def _two_gpus(real_gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


@pytest.mark.parametrize("compiled", ["--no-compile", "--compile"])
def test_two_ranks_train_what_one_trains(face_folder, tmp_path, compiled):
    two_ranks_train_as_one(face_folder, tmp_path, "--device", "cuda", compiled)


def test_a_rank_that_raises_ends_the_job(face_folder, tmp_path):
    """The other rank waits for it in a kernel."""
    program = tmp_path / "failing.py"
    program.write_text(PROGRAM)
    settings = ["train", *SMALL, "--device", "cuda", "--data", face_folder, "--out", tmp_path / "run"]
    command = [*map(str, (*TORCHRUN, program, *settings))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode != 0 and "on purpose" in result.stderr
