"""Files of tensors are valid for safetensors' own library, are written without a copy, and show damage."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastae.experiment.model import AutoEncoder
from fastae.runs import tensors as files
from fastae.runs.tensors import read_tensors, write_tensors

from ..commands import same_state
from ..helpers import little_memory

MIB = 1 << 20
TENSORS = {"long": torch.arange(3), "half": torch.ones(2, 3).half(), "flag": torch.tensor(True)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_safetensors_own_library_reads_the_tensors_and_the_metadata(path):
    model = AutoEncoder(32, 16).to(memory_format=torch.channels_last)
    write_tensors(path, model.state_dict(), {"iteration": "7"})
    assert same_state(load_file(path), dict(model.state_dict()))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["iteration"] == "7"


@pytest.mark.parametrize("metadata", [{}, {"folder": "/0" + "0" * 64, "é": '"'}])
def test_what_is_written_is_read_back(path, metadata):
    """A folder's name may contain 64 zeros, which also stand for the digest while it is computed."""
    write_tensors(path, TENSORS, metadata)
    found = read_tensors(path)
    assert same_state(found.tensors, TENSORS) and metadata.items() <= found.metadata.items()


def test_a_flipped_bit_in_any_byte_and_any_other_length_is_noticed(path):
    write_tensors(path, TENSORS, {"iteration": "7"})
    content = path.read_bytes()
    flipped = (
        content[:index] + bytes([content[index] ^ 1 << index % 8]) + content[index + 1 :]
        for index in range(len(content))
    )
    for damaged in (*flipped, *(content[:length] for length in range(len(content))), content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"."):
            read_tensors(path)


@pytest.mark.parametrize("metadata", [None, {}, {"fastae": "0.3.0"}, {"sha256": ""}, {"sha256": "0" * 64}])
def test_another_file_without_its_digest_is_refused(path, metadata):
    save_file(TENSORS, path, metadata)
    with pytest.raises(ValueError, match=r"SHA-256|not written by fastae"):
        read_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"__metadata__": 1}',
        b'{"__metadata__": {"sha256": {}}}',
        b"\xff" * 9,
    ],
)
def test_a_malformed_header_is_refused(path, header):
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"."):
        read_tensors(path)


def test_a_header_that_claims_to_be_huge_takes_no_memory(path):
    with path.open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    with little_memory(64 * MIB), pytest.raises(ValueError, match="not a safetensors file"):
        read_tensors(path)


def test_writing_takes_no_second_copy_of_the_tensors(path):
    tensors = {f"weight{number}": torch.full((MIB,), float(number)) for number in range(64)}
    with little_memory(64 * MIB):  # a quarter of what they take
        write_tensors(path, tensors, {})
    assert same_state(load_file(path), tensors)


def test_every_type_in_the_format_is_read_back(path):
    tensors = {str(kind): torch.ones(3, dtype=kind) for kind in files.KINDS}
    write_tensors(path, tensors, {})
    assert same_state(read_tensors(path).tensors, tensors)
