"""Checkpoints written beside the loop: copied off the device at once, to the disk in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fastae.runs import checkpoint


class NotFinite(Exception):
    """The weights, or Adam's moments, to be saved are not finite: such a checkpoint would be none."""


class Saver(AbstractContextManager):
    """Writes states into `folder`, never two at once, and keeps the last `keep`.

    What goes wrong in the thread is raised by the next call of `save` or `wait`: OSError, or NotFinite.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being written; what went wrong may still be untold."""
        return self._pending is None or self._pending.done()

    def save(self, state: Mapping[str, Any]) -> None:
        """Takes a copy of the state and returns; waits only for the save before this one."""
        self.wait()
        self._pending = self._thread.submit(self._write, _on_host(state))

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def finish(self) -> None:
        """Waits as `wait` does, but leaves what went wrong untold: something else is about to be."""
        if self._pending:
            wait([self._pending])

    def _write(self, state: dict[str, Any]) -> None:
        if not checkpoint.is_finite(state):
            raise NotFinite
        checkpoint.write(self._folder, state, self._keep)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind:
                self.finish()
            else:
                self.wait()
        finally:
            self._thread.shutdown()


def _on_host(state: Any) -> Any:
    """The same nest of dicts and lists, its tensors copied into the host's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_host(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_host(value) for value in state)
    return state
