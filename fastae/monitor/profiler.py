"""Output for other profilers: a run's phases as NVTX ranges, and PyTorch's trace of some steps.

Nsight Systems shows the ranges. Perfetto opens the trace; its costliest kernels are logged.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.profiler import profile

from fastae.utils.files import draft

TRACE = "trace.json.gz"
SHOWN = 10
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of events in the trace


class PhaseRanges:
    """Marks each phase as an NVTX range. Without CUDA in PyTorch, it does nothing."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._range: int | None = None

    def enter(self, phase: str | None) -> None:
        """Ends the current range and starts one for `phase`, unless it is the same. None starts none."""
        if phase == self._phase or torch.version.cuda is None:
            return
        if self._range is not None:
            torch.cuda.nvtx.range_end(self._range)
        self._phase, self._range = phase, torch.cuda.nvtx.range_start(phase) if phase else None


class StepProfiler(AbstractContextManager):
    """Runs PyTorch's profiler over some steps of a loop.

    The loop calls `begin` when it has warmed up, and `step` after each step. The trace is written to `folder`
    after `steps` steps, or when the block ends without an error. With 0 steps nothing is done.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self._left = steps
        self._folder = folder
        self._profile: profile | None = None

    def begin(self) -> None:
        """Starts the profiler. Further calls do nothing."""
        if self._left > 0 and self._profile is None:
            self._profile = profile()
            self._profile.start()

    def step(self) -> Path | None:
        """Counts a step. After the last one, writes the trace and returns its path. Raises OSError."""
        if self._profile is None:
            return None
        self._left -= 1
        return self._write(self._stop(self._profile)) if self._left == 0 else None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._profile is not None:
            finished = self._stop(self._profile)  # also after an error: a running profiler crashes at exit
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


def costliest(trace: Path) -> Iterator[str]:
    """Yields lines of text: how long the GPU was idle, and the kernels that took most of its time.

    For a run on the CPU, the costliest operators are listed. Raises OSError if the trace cannot be read.
    """
    try:
        with gzip.open(trace) as file:
            events = [each for each in json.load(file)["traceEvents"] if "dur" in each]
    except ValueError as error:  # a fault of the profiler must not end the run
        yield f"the trace cannot be read: {error}"
        return
    kernels = [each for each in events if each.get("cat") in ON_GPU]
    if kernels:
        yield f"the GPU was idle {_idle(kernels):.1%} of the time"
    spent = _own_times(kernels or [each for each in events if each.get("cat") == "cpu_op"])
    total = sum(spent.values()) or 1.0
    for name in sorted(spent, key=lambda name: -spent[name])[:SHOWN]:
        text = shorten(name, 80, placeholder="...")
        yield f"{spent[name] / total:6.1%} {spent[name] / 1e3:9.2f} ms  {text}"


def _idle(kernels: Iterable[dict[str, Any]]) -> float:
    """The share of the time between the first kernel's start and the last one's end without a kernel."""
    spans = sorted((each["ts"], each["ts"] + each["dur"]) for each in kernels)
    begin = end = spans[0][0]
    busy = 0.0
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / max(end - begin, 1e-9)


def _own_times(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Name -> microseconds of the events, minus those of events that they enclose in the same thread."""
    spent: dict[str, float] = {}
    enclosing: list[tuple[str, Any, float]] = []
    for each in sorted(events, key=lambda each: (str(each["tid"]), each["ts"], -each["dur"])):
        while enclosing and (enclosing[-1][1] != each["tid"] or enclosing[-1][2] <= each["ts"]):
            enclosing.pop()
        if enclosing:
            spent[enclosing[-1][0]] -= each["dur"]
        spent[each["name"]] = spent.get(each["name"], 0.0) + each["dur"]
        enclosing.append((each["name"], each["tid"], each["ts"] + each["dur"]))
    return spent
