"""model.safetensors: the weights of a finished run without Adam's moments, to use the model elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fastae.errors import FastaeError
from fastae.runs import checkpoint
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.tensors import read_metadata, read_tensors, write_tensors


def write_weights(path: Path, weights: Mapping[str, Tensor], iteration: int) -> None:
    """Writes the weights of a model.

    Args:
        path: the file.
        weights: the model's state dict, on the CPU.
        iteration: the number of steps that the model was trained for.

    Raises:
        OSError: the file cannot be written. An earlier file is then unchanged.
    """
    write_tensors(path, weights, {"iteration": str(iteration)})


def read_weights(path: Path, model: nn.Module) -> tuple[int, Mapping[str, Tensor]]:
    """Reads and verifies the weights of a model, which may be on the meta device.

    Returns:
        The number of steps that they were trained for, and the state dict, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or its weights are not finite weights of the model.
    """
    content = read_tensors(path)
    checkpoint.require_alike(content.tensors, model.state_dict())
    return int(content.metadata.get("iteration", "")), content.tensors


def finished_at(run: RunFolder) -> int | None:
    """Returns the iteration of a finished run's weights, which are not verified; None if there are none."""
    try:
        return int(read_metadata(run.weights_file).get("iteration", ""))
    except (OSError, ValueError):
        return None


def complete(run: RunFolder, newest: Checkpoint, keep: int) -> None:
    """Completes the folder of a finished run that was killed after its last checkpoint, which is `newest`.

    Writes its weights, unless they are there and valid, and then removes the checkpoints that a finished run
    does not keep. Raises FastaeError if the weights cannot be written.
    """
    try:
        if _verified_at(run) != newest.iteration:
            write_weights(run.weights_file, newest.training.model, newest.iteration)
        checkpoint.remove_later(run.checkpoints, newest.iteration)
        checkpoint.keep_newest(run.checkpoints, min(keep, 1))
    except OSError as error:
        raise FastaeError(f"cannot write {str(run.weights_file)!r}: {error.strerror or error}") from None


def _verified_at(run: RunFolder) -> int | None:
    """Returns the iteration of a finished run's weights; None if there are none, or if they are damaged."""
    try:
        return int(read_tensors(run.weights_file).metadata.get("iteration", ""))
    except (OSError, ValueError):
        return None
