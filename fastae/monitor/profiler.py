"""For other profilers: a run's phases as NVTX ranges, and PyTorch's trace of some steps.

Nsight Systems shows the ranges (`nsys profile fastae train ...`); Perfetto opens the trace.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import profile

from fastae.utils.files import draft

TRACE = "trace.json.gz"


class PhaseRanges:
    """One NVTX range at a time; nothing on a PyTorch without CUDA."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._range: int | None = None

    def enter(self, phase: str | None) -> None:
        """Ends the range before, and starts one of this name, if it is another; None starts none."""
        if phase == self._phase or torch.version.cuda is None:
            return
        if self._range is not None:
            torch.cuda.nvtx.range_end(self._range)
        self._phase, self._range = phase, torch.cuda.nvtx.range_start(phase) if phase else None


class StepProfiler(AbstractContextManager):
    """PyTorch's profiler over some steps of a loop: `begin` when it has warmed up, `step` after each step.

    After `steps` of them, or at the end of the block unless that is an error, the trace is in `folder`. With
    0 steps it does nothing.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self._left = steps
        self._folder = folder
        self._profile: profile | None = None

    def begin(self) -> None:
        """Starts recording; further calls do nothing."""
        if self._left > 0 and self._profile is None:
            self._profile = profile()
            self._profile.start()

    def step(self) -> Path | None:
        """One step is done. Returns the trace when it has been written. Raises OSError."""
        if self._profile is None:
            return None
        self._left -= 1
        return self._write(self._stop(self._profile)) if self._left == 0 else None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._profile is not None:
            finished = self._stop(self._profile)  # whatever happened: left running, it crashes at exit
            if kind is None:
                self._write(finished)

    def _stop(self, running: profile) -> profile:
        self._profile, self._left = None, 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the last kernels are not in the trace
        running.stop()
        return running

    def _write(self, finished: profile) -> Path:
        path = self._folder / TRACE
        with draft(path) as partial:
            finished.export_chrome_trace(str(partial))
        return path
