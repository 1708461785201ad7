"""A user's function as an observer, so that a program can follow a run, and end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastae.runs.metrics import HELD_OUT, TRAIN
from fastae.training.clock import Window
from fastae.training.evaluate import Evaluation
from fastae.training.observers.observer import Observer


@dataclass(frozen=True)
class LogEntry:
    """A row of metrics.csv."""

    iteration: int

    kind: str
    """'train' for a log step, 'held_out' for an evaluation."""

    values: Mapping[str, float]
    """Name of a column -> value, as docs/training.md describes them."""


OnLog = Callable[[LogEntry], object]
"""A function that is called with each row. Its result is ignored. An exception ends the run."""


class CallbackFailed(Exception):
    """A user's function has raised the exception that is this one's cause. It ends the run as it is."""


class Callback(Observer):
    """Calls a function at each log step and each evaluation."""

    def __init__(self, on_log: OnLog) -> None:
        self._on_log = on_log

    def window(self, window: Window) -> None:
        self._call(LogEntry(window.iteration, TRAIN, window.values))

    def evaluation(self, evaluation: Evaluation) -> None:
        self._call(LogEntry(evaluation.iteration, HELD_OUT, evaluation.values))

    def _call(self, entry: LogEntry) -> None:
        try:
            self._on_log(entry)
        except Exception as error:
            raise CallbackFailed from error
