"""The observer that gives the loop's phases and figures to the monitor of the machine."""

from __future__ import annotations

from fastae.monitor.monitor import Monitor
from fastae.monitor.recording import Phase
from fastae.training.clock import Window
from fastae.training.observers.observer import Observer


class Usage(Observer):
    """Gives the loop's phases and figures to a monitor, which is opened and closed elsewhere."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def phase(self, phase: Phase) -> None:
        self._monitor.enter(phase)

    def window(self, window: Window) -> None:
        self._monitor.record(window)
