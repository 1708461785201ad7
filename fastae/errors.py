"""The exceptions that are shown as one line, without a traceback, and the exit code of each."""

from __future__ import annotations

import signal


class FastaeError(Exception):
    """A mistake in the input. The message names the thing and the remedy, in one line."""

    exit_code = 2


class SettingError(FastaeError):
    """A setting or an argument that has a wrong value. The message begins with its name in Python.

    name: `batch_size`, for example; the command line shows `--batch-size` instead. problem: the rest.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class RunFailure(FastaeError):
    """A run that had begun cannot continue. The message says why, what is kept and how to resume it."""

    exit_code = 1


class TrainingFault(Exception):
    """A run cannot continue. `open_trainer` makes it a RunFailure, which says how to resume it."""


class NotFinite(TrainingFault):
    """A loss, the weights or Adam's moments are infinite or NaN. Resuming would repeat it, bit for bit."""


class Stopped(Exception):
    """A run was asked to stop, and has. The message says what is saved and how to resume it."""

    def __init__(self, caught: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.caught = caught
        self.exit_code = 128 + caught  # as a shell reports a process that a signal ended
