"""Checkpoints are read back, and what a killed process left of them is completed or removed."""

import json

import pytest
import torch
from torch import nn

from fastae.config import TrainConfig
from fastae.runs import checkpoint
from fastae.runs.checkpoint import Checkpoint, TrainingState
from fastae.runs.description import RunDescription
from fastae.runs.loaded_model import load_model
from fastae.runs.tensors import write_tensors

from ..commands import here, same_state

SCALER = {
    "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5,
    "growth_interval": 2000, "_growth_tracker": 0,
}  # fmt: skip
MODEL = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4))
WEIGHTS = {name: weight.detach() for name, weight in MODEL.named_parameters()}
GOOD = Checkpoint(
    1,
    TrainingState(MODEL.state_dict(), WEIGHTS, {name: w.square() for name, w in WEIGHTS.items()},
                  step=torch.tensor(1), scaler=SCALER),
    RunDescription(TrainConfig(), device="a device"),
    3.0,
)  # fmt: skip


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path):
    checkpoint.write(tmp_path, GOOD, keep=1)
    found = checkpoint.newest(tmp_path, pytest.fail, lambda config: MODEL)
    assert (found.description, found.seconds) == (GOOD.description, GOOD.seconds)
    assert same_state(vars(found.training), vars(GOOD.training))


def test_a_file_of_weights_is_not_a_checkpoint_although_no_model_is_given(tmp_path):
    state = {"iteration": 9, "run": {"config": {}}, "seconds": 0.0, "scaler": {}}
    write_tensors(tmp_path / "0000009.safetensors", MODEL.state_dict(), {"state": json.dumps(state)})
    lines = []
    assert checkpoint.newest(tmp_path, lines.append) is None and len(lines) == 1


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_resuming_a_finished_run_repairs_its_damaged_weights(run, capsys):
    flip_last_bit(run / "model.safetensors")
    here("train", "--resume", run)
    capsys.readouterr()
    assert load_model(run).iteration == 4 and not capsys.readouterr().out
