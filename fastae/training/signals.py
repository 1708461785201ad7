"""Signals that ask the training loop to stop: the first is noted, a second ends the process at once."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals(AbstractContextManager):
    """While the block runs, `caught` is the first SIGTERM, SIGINT or SIGHUP that arrived, or None.

    If the block ends without an exception although a signal was caught, that signal is sent again. A signal
    that the process was started to ignore (SIGHUP under nohup) stays ignored. Outside the main thread,
    where Python handles no signals, nothing is caught.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def within(self, seconds: float) -> signal.Signals | None:
        """Waits at most `seconds` for a signal; returns it, or one that was caught before, or None.

        A batch system signals the processes of a job one after the other. So a child process may have died of
        a signal that this process has yet to receive.
        """
        end = time.monotonic() + seconds
        while not self.caught and time.monotonic() < end:
            time.sleep(0.02)
        return self.caught

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number)
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.caught and kind is None:
            signal.raise_signal(self.caught)
