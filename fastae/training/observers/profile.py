"""The observer that writes PyTorch's trace of some steps, and logs the costliest kernels in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from fastae.monitor.recording import Phase
from fastae.training.observers.observer import Observer
from fastae.utils.console import log
from fastae.utils.files import draft

TRACE = "trace.json.gz"
SHOWN = 10


class Profile(Observer):
    """Runs PyTorch's profiler over the first `steps` steps after the warm-up.

    The trace is written to `folder` after these steps, or when the run ends before without an error.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._left = steps
        self._path = folder / TRACE
        self._profile: profile | None = None

    def phase(self, phase: Phase) -> None:
        if phase is Phase.TRAIN and self._left > 0 and self._profile is None:
            self._profile = profile()
            self._profile.start()

    def step(self, iteration: int, done: float) -> None:
        if self._profile is not None:
            self._left -= 1
            if self._left == 0:
                self._end()

    def __exit__(self, *exception: object) -> None:
        self._end(write=not any(exception))

    def _end(self, write: bool = True) -> None:
        """Ends the profiler, also after an error: a profiler that runs at exit crashes the process."""
        if self._profile is None:
            return
        finished, self._profile, self._left = self._profile, None, 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the last kernels are not in the trace
        finished.stop()
        if write:
            with draft(self._path) as partial:
                finished.export_chrome_trace(str(partial))
            for index, line in enumerate((str(self._path), *costliest(finished.events()))):
                log(f"{'' if index else 'profile':10}{line}")


def costliest(events: Sequence[FunctionEvent]) -> Iterator[str]:
    """Yields lines of text: how long the GPU was idle, and the kernels and copies that took most of its time.

    For a run on the CPU, the costliest operators are listed, without the time of those that they call.
    """
    kernels = [each for each in events if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
    if kernels:
        yield f"the GPU was idle {_idle(kernels):.1%} of the time"
    spent: Counter[str] = Counter()  # name -> microseconds
    for each in kernels or events:
        spent[each.name] += each.time_range.elapsed_us() if kernels else each.self_cpu_time_total
    total = sum(spent.values()) or 1.0
    for name, time in spent.most_common(SHOWN):
        yield f"{time / total:6.1%} {time / 1e3:9.2f} ms  {shorten(name, 80, placeholder='...')}"


def _idle(kernels: Sequence[FunctionEvent]) -> float:
    """Returns the share of the time without a kernel, from the first kernel's start to the last one's end."""
    spans = sorted((each.time_range.start, each.time_range.end) for each in kernels)
    starts, ends = np.array(spans).T
    ends = np.maximum.accumulate(ends)  # of all kernels so far, since several streams overlap
    pauses = np.maximum(0, starts[1:] - ends[:-1])
    return float(pauses.sum() / max(ends[-1] - starts[0], 1e-9))
