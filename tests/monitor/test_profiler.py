"""NVTX ranges by phase, and PyTorch's trace."""

import gzip
import json
from contextlib import suppress

import pytest
import torch

from fastae.monitor.profiler import SHOWN, TRACE, PhaseRanges, StepProfiler, costliest


def test_one_range_at_a_time(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda.nvtx, "range_start", lambda name: calls.append(name) or len(calls))
    monkeypatch.setattr(torch.cuda.nvtx, "range_end", calls.append)
    ranges = PhaseRanges()
    for phase in ("compile", "train", "train", None, None):
        ranges.enter(phase)
    assert calls == ["compile", 1, "train", 3]


def test_a_trace_of_so_many_steps(tmp_path):
    with StepProfiler(2, tmp_path) as profiler:
        assert profiler.step() is None, "it has not begun"
        profiler.begin()
        torch.ones(3) + 1
        assert profiler.step() is None
        profiler.begin()
        assert profiler.step() == tmp_path / TRACE
        profiler.begin()
        assert profiler.step() is None, "one trace is enough"
    assert [path.name for path in tmp_path.iterdir()] == [TRACE]


@pytest.mark.parametrize(
    ("steps", "error", "written"), [(0, None, []), (5, None, [TRACE]), (5, KeyError, [])]
)
def test_a_loop_that_ends_early_has_what_there_is_unless_it_failed(tmp_path, steps, error, written):
    with suppress(KeyError), StepProfiler(steps, tmp_path) as profiler:
        profiler.begin()
        profiler.step()
        if error:
            raise error
    assert [path.name for path in tmp_path.iterdir()] == written
    assert not torch.autograd._profiler_enabled(), "left running, it crashes the process at its exit"


def event(category, name, start, length, thread=7):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread}


def written(path, events):
    with gzip.open(path / TRACE, "wt") as file:
        json.dump({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}, file)
    return list(costliest(path / TRACE))


def test_the_kernels_that_take_the_most_time_and_how_long_the_gpu_was_idle(tmp_path):
    """80 us of 100: two streams overlap, and a copy counts as work."""
    events = [
        event("kernel", "convolution", 0, 40), event("kernel", "convolution", 20, 20, thread=8),
        event("gpu_memcpy", "Memcpy HtoD", 40, 20), event("kernel", "adam", 80, 20),
        event("gpu_user_annotation", "step", 0, 100), event("cpu_op", "aten::add", 0, 100),
    ]  # fmt: skip
    idle, *kernels = written(tmp_path, events)
    assert "20.0%" in idle
    assert [line.split()[0] for line in kernels] == ["60.0%", "20.0%", "20.0%"] and "convolution" in kernels[
        0
    ]
    many = written(tmp_path, [event("kernel", f"kernel {index}", index, 1) for index in range(50)])
    assert len(many) == 1 + SHOWN


def test_without_a_gpu_the_operators_without_what_they_call(tmp_path):
    calls = [
        event("cpu_op", "outer", 0, 100),
        event("cpu_op", "inner", 10, 70),
        event("cpu_op", "inner", 90, 5),
    ]
    found = written(tmp_path, [*calls, event("cpu_op", "inner", 50, 25, thread=8)])
    assert [(line.split()[0], line.split()[-1]) for line in found] == [("80.0%", "inner"), ("20.0%", "outer")]
    assert written(tmp_path, []) == []


def test_a_trace_that_is_no_json_does_not_end_the_run(tmp_path):
    with gzip.open(tmp_path / TRACE, "wt") as file:
        file.write('{"traceEvents": [{"name": ')
    (line,) = costliest(tmp_path / TRACE)
    assert "cannot be read" in line
