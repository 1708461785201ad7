"""model.safetensors is valid for safetensors' own library, and is written without a copy."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastae.experiment.model import AutoEncoder
from fastae.runs.weights import write_weights

from ..commands import same_state
from ..helpers import little_memory

MIB = 1 << 20


def test_the_file_contains_the_models_weights_and_the_iteration(tmp_path):
    model = AutoEncoder(32, 16).to(memory_format=torch.channels_last)
    write_weights(tmp_path / "weights", model.state_dict(), 7)
    found = load_file(tmp_path / "weights")
    assert same_state(found, model.state_dict())
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    with safe_open(tmp_path / "weights", framework="pt") as file:
        assert file.metadata()["iteration"] == "7"


def test_writing_takes_no_second_copy_of_the_weights(tmp_path):
    weights = {f"weight{number}": torch.full((MIB,), float(number)) for number in range(64)}
    with little_memory(64 * MIB):  # a quarter of what they take
        write_weights(tmp_path / "weights", weights, 1)
    assert same_state(load_file(tmp_path / "weights"), weights)
