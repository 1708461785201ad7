"""Checkpoints and pictures, written beside the loop: copied off the device at once, written in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fastae.errors import TrainingFault
from fastae.runs import checkpoint


class Saver(AbstractContextManager):
    """Writes states into `folder`, of which it keeps the last `keep`, one after another in a thread.

    What goes wrong there is raised by the next call of `save` or `wait`: OSError, or TrainingFault if weights
    are not finite.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: deque[Future] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is being written; what went wrong may not have been raised yet."""
        return all(each.done() for each in self._pending)

    def submit(self, work: Callable[[], None]) -> None:
        """Does something else, after what was asked for before."""
        self._pending.append(self._thread.submit(work))

    def save(self, state: Mapping[str, Any], weights: Path | None = None) -> None:
        """Takes a copy of the state and returns; waits only for what was asked for before.

        weights: a file for the model's weights alone, of a finished run, of which only this state is kept.
        """
        self.wait()
        copied = _on_host(state)
        self.submit(lambda: self._write(copied, weights))

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        while self._pending:
            self._pending.popleft().result()

    def _write(self, state: dict[str, Any], weights: Path | None) -> None:
        if not checkpoint.is_finite(state):
            what = f"weights or Adam's moments not finite before iteration {state['iteration']:,}"
            raise TrainingFault(f"{what}; a lower --lr may help")
        if weights:
            checkpoint.write_weights(weights, state)
        checkpoint.write(self._folder, state, keep=1 if weights else self._keep)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind:
                wait(self._pending)  # what went wrong there is not raised: something else is about to be
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
