"""The exceptions that are reported as one line without a traceback, and their exit codes."""

from __future__ import annotations

import signal


class FastaeError(Exception):
    """A user's mistake, such as a wrong setting. Its message is one line with the fault and the remedy."""

    exit_code = 2


class SettingError(FastaeError):
    """A setting or an argument has a wrong value. The message consists of `name` and `problem`.

    Args:
        name: its name in Python, for example `batch_size`, which the command line shows as `--batch-size`.
        problem: the rest of the sentence, such as 'must be an integer, not 1.5'.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class RunFailure(FastaeError):
    """A run that had started cannot continue. The message says why, what is kept and how to resume."""

    exit_code = 1


class TrainingFault(Exception):
    """A run cannot continue. `open_trainer` converts this to a RunFailure, which says how to resume."""


class NotFinite(TrainingFault):
    """A loss, the weights or Adam's moments are infinite or NaN. A resumed run would repeat this exactly."""


class Stopped(Exception):
    """A run was stopped by the signal `caught`. The message says what is saved and how to resume."""

    def __init__(self, caught: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.caught = caught
        self.exit_code = 128 + caught  # as shells report a process that was ended by a signal
