"""`load_model`: the file of a run from which the weights are read, and the files that are refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fastae.errors import FastaeError
from fastae.runs.loaded_model import load_model

GOOD = {"iteration": "5"}


@pytest.fixture
def run(run):
    """A run whose checkpoint is of iteration 4, without its model.safetensors."""
    (run / "model.safetensors").unlink()
    return run


def save_weights(run, metadata=GOOD, **others):
    """Writes a model.safetensors whose weights are zero, unlike the checkpoint's."""
    weights = {name: torch.zeros_like(weight) for name, weight in load_model(run).model.state_dict().items()}
    save_file(weights | others, run / "model.safetensors", metadata)


def source(run):
    """Returns (file, iteration) that the model of `run` is loaded from."""
    loaded = load_model(str(run))
    assert not loaded.model.training
    zero = all(not weight.any() for weight in loaded.model.parameters())
    return "model.safetensors" if zero else "checkpoint", loaded.iteration


@pytest.mark.parametrize(("iteration", "file"), [(3, "checkpoint"), (4, "model.safetensors")])
def test_the_newest_weights_are_read_and_safetensors_if_both_are_as_new(run, iteration, file):
    save_weights(run, {"iteration": str(iteration)})
    assert source(run) == (file, 4)


def test_model_safetensors_is_enough(run):
    save_weights(run)
    shutil.rmtree(run / "checkpoints")
    assert source(run) == ("model.safetensors", 5)


def test_a_newer_checkpoint_that_is_damaged_is_named(run, capsys):
    save_weights(run)
    (run / "checkpoints" / "0000009.safetensors").write_bytes(b"cut short")
    assert source(run) == ("model.safetensors", 5)
    (line,) = capsys.readouterr().out.splitlines()
    assert "0000009.safetensors" in line


@pytest.mark.parametrize("damage", ["cut", "no iteration", "a pipe", "another type", "another shape"])
def test_a_file_that_cannot_be_used_is_named_and_the_checkpoint_read(run, damage, capsys):
    path, name = run / "model.safetensors", "encoder.0.weight"
    changes = {"another type": torch.zeros(32, 3, 5, 5).double(), "another shape": torch.zeros(1)}
    save_weights(
        run, {} if damage == "no iteration" else GOOD, **{name: changes[damage]} if damage in changes else {}
    )
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "a pipe":
        path.unlink()
        os.mkfifo(path)
    assert source(run) == ("checkpoint", 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line


@pytest.mark.parametrize("claim", [{"latent": 17}, {"image_size": 4096}, {"latent": 2**20}])
def test_weights_of_other_shapes_than_config_json_claims_are_refused(run, claim):
    save_weights(run)
    described = json.loads((run / "config.json").read_text())
    described["config"] |= claim
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        load_model(run)
