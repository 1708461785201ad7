"""Observers that watch how the run uses the machine: the utilisation report and PyTorch's profiler."""

from __future__ import annotations

from typing import Any

from fastae.monitor.monitor import Monitor
from fastae.monitor.profiler import StepProfiler
from fastae.monitor.recording import Phase
from fastae.runs.folder import RunFolder
from fastae.training.clock import Window
from fastae.training.observers.observer import Observer
from fastae.utils.console import log


class Usage(Observer):
    """Gives the loop's phases and figures to a monitor, which is opened and closed elsewhere."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def phase(self, phase: Phase) -> None:
        self._monitor.enter(phase)

    def window(self, window: Window) -> None:
        self._monitor.record(
            images=window.images,
            seconds=window.seconds,
            data_wait=window.data_wait,
            device_wait=window.device_wait,
        )


class Profile(Observer):
    """Traces `steps` steps after the warm-up, and logs the costliest kernels."""

    def __init__(self, run: RunFolder, steps: int) -> None:
        self._profiler = StepProfiler(steps, run.path)

    def __exit__(self, *exception: Any) -> None:
        self._profiler.__exit__(*exception)

    def phase(self, phase: Phase) -> None:
        if phase is Phase.TRAIN:
            self._profiler.begin()

    def step(self, iteration: int, done: float) -> None:
        for index, line in enumerate(self._profiler.step()):
            log(f"{'' if index else 'profile':10}{line}")
