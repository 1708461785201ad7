"""`load_model`: the file of a run from which the weights are read, and the files that are refused."""

import os
import shutil

import pytest
import torch

from fastae.errors import FastaeError
from fastae.experiment.model import AutoEncoder
from fastae.runs.loaded_model import load_model
from fastae.runs.weights import write_weights
from fastae.training.runner import train

from ..commands import claim
from ..helpers import small_config, small_model


@pytest.fixture
def run(run):
    """A run whose checkpoint is of iteration 4, without its model.safetensors."""
    (run / "model.safetensors").unlink()
    return run


def save_weights(run, iteration=5, **others):
    """Writes a model.safetensors whose weights are zero, unlike the checkpoint's."""
    weights = {name: torch.zeros_like(weight) for name, weight in load_model(run).model.state_dict().items()}
    write_weights(run / "model.safetensors", weights | others, iteration)


def source(run):
    """Returns (file, iteration) that the model of `run` is loaded from."""
    loaded = load_model(str(run))
    assert not loaded.model.training
    zero = all(not weight.any() for weight in loaded.model.parameters())
    return "model.safetensors" if zero else "checkpoint", loaded.iteration


@pytest.mark.parametrize(("iteration", "file"), [(3, "checkpoint"), (4, "model.safetensors")])
def test_the_newest_weights_are_read_and_safetensors_if_both_are_as_new(run, iteration, file):
    save_weights(run, iteration)
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


def test_a_damaged_file_is_named_and_the_checkpoint_is_read(run, capsys):
    """Every kind of damage is in test_tensors."""
    save_weights(run)
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"iteration":"5"', b'"iteration":"7"'))
    assert source(run) == ("checkpoint", 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line


@pytest.mark.parametrize("value", [torch.zeros(32, 3, 5, 5).double(), torch.zeros(1)])
def test_weights_of_another_type_or_shape_are_not_used(run, value, capsys):
    save_weights(run, **{"encoder.0.weight": value})
    assert source(run) == ("checkpoint", 4)
    assert "encoder.0.weight" in capsys.readouterr().out


def test_a_pipe_instead_of_the_file_does_not_block(run):
    os.mkfifo(run / "model.safetensors")
    assert source(run) == ("checkpoint", 4)


def test_a_model_of_ones_own_is_loaded_only_if_it_is_passed(face_folder, tmp_path):
    """A folder names its model, and nothing is imported or run for that."""
    config = small_config(face_folder, tmp_path / "run")
    train(config, model=small_model)
    with pytest.raises(FastaeError, match=r"helpers\.small_model: pass it in Python, as model="):
        load_model(tmp_path / "run")
    loaded = load_model(tmp_path / "run", model=small_model)
    assert loaded.iteration == 2 and loaded.model(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        load_model(tmp_path / "run", model=AutoEncoder)


@pytest.mark.parametrize(
    "claimed", [{"latent": 17}, {"image_size": 4096}, {"latent": 2**20, "image_size": 4096}]
)
def test_weights_of_other_shapes_than_config_json_claims_are_refused(run, claimed):
    save_weights(run)
    claim(run, **claimed)
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        load_model(run)
