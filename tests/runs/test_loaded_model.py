"""`load_model`: which file of a run the weights are read from, and what is refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fastae.errors import FastaeError
from fastae.runs.loaded_model import load_model


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of a run whose only checkpoint is of iteration 4."""
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "model.safetensors").unlink(missing_ok=True)
    return tmp_path / "run"


def save_weights(run, iteration, **others):
    """A model.safetensors that can be told from the checkpoint: its weights are zero."""
    weights = {name: torch.zeros_like(weight) for name, weight in load_model(run).model.state_dict().items()}
    save_file(weights | others, run / "model.safetensors", {"iteration": str(iteration)})


def has_read(run):
    """(file, iteration) that the model of `run` is from."""
    loaded = load_model(str(run))
    assert not loaded.model.training
    zero = all(not weight.any() for weight in loaded.model.parameters())
    return "model.safetensors" if zero else "checkpoint", loaded.iteration


@pytest.mark.parametrize(
    ("iteration", "file"), [(3, "checkpoint"), (4, "model.safetensors"), (5, "model.safetensors")]
)
def test_the_newest_weights_are_read_and_safetensors_if_both_are(run, iteration, file):
    save_weights(run, iteration)
    assert has_read(run) == (file, max(4, iteration))


def test_model_safetensors_is_enough(run):
    save_weights(run, 7)
    shutil.rmtree(run / "checkpoints")
    assert has_read(run) == ("model.safetensors", 7)


@pytest.mark.parametrize("damage", ["cut", "no iteration", "a pipe"])
def test_a_damaged_file_is_logged_and_the_checkpoint_read(run, damage, capsys):
    save_weights(run, 5)
    path = run / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
        save_file({}, path) if damage == "no iteration" else os.mkfifo(path)
    assert has_read(run) == ("checkpoint", 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line


def test_a_newer_checkpoint_that_is_damaged_is_logged_and_the_rest_compared(run, capsys):
    save_weights(run, 5)
    (run / "checkpoints" / "0000009.pt").write_bytes(b"cut short")
    assert has_read(run) == ("model.safetensors", 5)
    (line,) = capsys.readouterr().out.splitlines()
    assert "0000009.pt" in line


@pytest.mark.parametrize("claim", [{"latent": 17}, {"image_size": 4096}, {"latent": 2**20}])
def test_weights_of_other_shapes_than_config_json_claims_are_refused(run, claim):
    save_weights(run, 5)
    described = json.loads((run / "config.json").read_text())
    described["config"] |= claim
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        load_model(run)


def test_weights_of_another_type_are_refused(run):
    name, weight = next(iter(load_model(run).model.state_dict().items()))
    save_weights(run, 5, **{name: weight.double()})
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        load_model(run)
