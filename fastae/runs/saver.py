"""Checkpoints and pictures, written beside the loop: copied off the device at once, written in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastae.errors import NotFinite
from fastae.runs import checkpoint
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.weights import write_weights


class Saver(AbstractContextManager):
    """Writes checkpoints into `folder`, which keeps the last `keep`, one after another in a thread.

    With 0 it keeps one until the run is finished, and then none.

    What fails there is raised by the next call of `check`, `save` or `wait`: OSError, or NotFinite for
    the weights.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: deque[Future] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work` in the thread, after what was submitted before."""
        self._pending.append(self._thread.submit(work))

    def save(self, found: Checkpoint, weights: Path | None = None) -> None:
        """Copies the tensors and returns; waits only for what was submitted before.

        weights: file for the model's weights alone. The run is then finished, and keeps only this checkpoint.
        """
        self.wait()
        copied = replace(found, training=_to_host(found.training))
        self.submit(lambda: self._write(copied, weights))

    def check(self) -> None:
        """Raises what has failed so far; does not wait."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Returns when everything is written."""
        while self._pending:
            self._pending.popleft().result()

    def _write(self, copied: Checkpoint, weights: Path | None) -> None:
        if not checkpoint.is_finite(copied.training):
            raise NotFinite(f"weights or Adam's moments not finite before iteration {copied.iteration:,}")
        # First, since the weights can be written again from a checkpoint.
        if self._keep or not weights:
            checkpoint.write(self._folder, copied, keep=1 if weights else max(1, self._keep))
        if weights:
            write_weights(weights, copied.training["model"], copied.iteration)
            if not self._keep:
                checkpoint.remove_all(self._folder)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._thread.shutdown()
        if kind is None:  # otherwise the first error is reported, not this one
            self.wait()


def _to_host(state: Any) -> Any:
    """The same nested dicts, their tensors copied into the host's memory."""
    if isinstance(state, Mapping):
        return {name: _to_host(value) for name, value in state.items()}
    return state.detach().to("cpu", copy=True) if isinstance(state, torch.Tensor) else state
