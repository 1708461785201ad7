"""Writes model.safetensors: the weights of a finished run without Adam's moments, to use the model elsewhere.

The weights are written tensor by tensor. The functions of the package safetensors copy all of them at once,
and if the memory does not suffice for the copies, Rust panics: Python then raises a BaseException.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastae.errors import FastaeError
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import finished_at
from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write

KINDS = {torch.int64: "I64", torch.float32: "F32"}
"""The types of a model's tensors -> safetensors' names. Wider types come first, so that all are aligned."""

ALIGNMENT = 8
"""The header is padded with blanks to a multiple of this number of bytes."""


def write_weights(path: Path, weights: Mapping[str, Any], iteration: int) -> None:
    """Writes the weights of a model in the format that safetensors' README defines.

    Args:
        path: the file.
        weights: the model's state dict, on the CPU.
        iteration: the number of steps that the model was trained for.

    Raises:
        OSError: the file cannot be written. An earlier file is then unchanged.
    """
    kinds = list(KINDS)
    ordered = dict(sorted(weights.items(), key=lambda each: (kinds.index(each[1].dtype), each[0])))
    header: dict[str, Any] = {"__metadata__": {"iteration": str(iteration), "fastae": __version__}}
    end = 0
    for name, value in ordered.items():
        start, end = end, end + value.nbytes
        header[name] = {
            "dtype": KINDS[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in ordered.values():
            file.write(value.contiguous().numpy())  # copies a weight that is channels-last


def restore_weights(run: RunFolder, checkpoint: Checkpoint) -> None:
    """Writes the weights of a finished run that was killed after its last checkpoint and before its weights.

    Raises FastaeError if they cannot be written.
    """
    if finished_at(run) != checkpoint.iteration:
        try:
            write_weights(run.weights_file, checkpoint.training["model"], checkpoint.iteration)
        except OSError as error:
            raise FastaeError(f"cannot write {str(run.weights_file)!r}: {error.strerror or error}") from None
