"""The events of a training loop. Everything but the training itself observes them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Self

from fastae.monitor.recording import Phase
from fastae.runs.checkpoint import Checkpoint
from fastae.training.clock import Window
from fastae.training.evaluate import Evaluation


class Observer(AbstractContextManager):
    """Does nothing at each event; a derived class does something at some. It is open while the run trains.

    With several ranks, only the main one has observers. An exception of a method ends the run.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes what the observer has opened."""

    def phase(self, phase: Phase) -> None:
        """Called when the run begins to do something else."""

    def step(self, iteration: int, done: float) -> None:
        """Called after each iteration; `done` is the share of the run that is done, in [0, 1]."""

    def window(self, window: Window) -> None:
        """Called at each log step."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Called after each evaluation."""

    def flush(self) -> None:
        """Called before a checkpoint is saved: flushes the observer's files to the disk."""

    def save(self, checkpoint: Checkpoint, final: bool) -> None:
        """Called to save a checkpoint, whose tensors the next step changes; the last one is `final`."""

    def finish(self, is_complete: bool) -> None:
        """Called once, after the last save: the run is complete, or a signal stops it."""
