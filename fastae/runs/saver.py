"""Writes checkpoints and pictures in a thread, so that training continues meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from fastae.errors import FastaeError, NotFinite, TrainingFault
from fastae.runs import checkpoint
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.weights import write_weights


class Saver(AbstractContextManager):
    """Copies checkpoints to the host, and writes them one after another in a thread.

    An error in the thread is raised by the next call of `check`, `save` or `wait`: OSError, TrainingFault, or
    NotFinite if the weights or Adam's moments are not finite.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Starts the thread.

        Args:
            folder: the folder of the checkpoints.
            keep: how many checkpoints the folder keeps. With 0 it keeps one until the run is finished, and
                then none.
        """
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: deque[Future] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work` in the thread, after all work that was submitted before."""
        self._pending.append(self._thread.submit(work))

    def save(self, found: Checkpoint, weights: Path | None = None) -> None:
        """Waits for all work that was submitted before, copies the tensors, and submits their writing.

        Args:
            found: the checkpoint.
            weights: the file for the weights of a finished run, which then keeps only this checkpoint.
        """
        self.wait()
        copied = replace(found, training=found.training.copied())
        self.submit(lambda: self._write(copied, weights))

    def check(self) -> None:
        """Raises the first error of the work that is done so far, without waiting."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Waits until all submitted work is done. Raises its first error."""
        while self._pending:
            self._pending.popleft().result()

    def _write(self, copied: Checkpoint, weights: Path | None) -> None:
        """Writes a checkpoint and, at the end of a run, its weights. It runs in the thread."""
        if not copied.training.is_finite:
            raise NotFinite(f"weights or Adam's moments not finite before iteration {copied.iteration:,}")
        # The checkpoint is written first, since the weights can be written again from it.
        try:
            if self._keep or not weights:
                checkpoint.write(self._folder, copied, keep=1 if weights else max(1, self._keep))
            if weights:
                write_weights(weights, copied.training.model, copied.iteration)
                if not self._keep:
                    checkpoint.keep_newest(self._folder, 0)
        except FastaeError as error:  # the folder cannot be listed
            raise TrainingFault(str(error)) from None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._thread.shutdown()
        if kind is None:  # otherwise the block's own error is reported, not one of the thread
            self.wait()
