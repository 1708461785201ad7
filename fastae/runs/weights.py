"""model.safetensors: the weights of a finished run alone, for those who only use the model.

They are written tensor by tensor: safetensors' own functions want copies of all of them at once, and where
memory does not suffice for these, they end in a panic of Rust, which is no Exception.
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
"""What a model holds, and safetensors' names for it. Wider types come first, so that all are aligned."""

ALIGNMENT = 8
"""Bytes; the header is filled up with blanks to a multiple of it."""


def write_weights(path: Path, weights: Mapping[str, Any], iteration: int) -> None:
    """Writes the weights of a model after an iteration, in the format that safetensors' README defines.

    Raises OSError.
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
            file.write(value.contiguous().numpy())  # of a channels-last weight a copy, one at a time


def restore_weights(run: RunFolder, checkpoint: Checkpoint) -> None:
    """Writes the weights of a finished run, if it was killed between its last checkpoint and them.

    Raises FastaeError if they cannot be written.
    """
    if finished_at(run) != checkpoint.iteration:
        try:
            write_weights(run.weights, checkpoint.training["model"], checkpoint.iteration)
        except OSError as error:
            raise FastaeError(f"cannot write {str(run.weights)!r}: {error.strerror or error}") from None
