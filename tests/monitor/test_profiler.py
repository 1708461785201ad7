"""NVTX ranges by phase, and PyTorch's trace."""

import pytest
import torch

from fastae.monitor.profiler import TRACE, PhaseRanges, StepProfiler


def test_one_range_at_a_time(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda.nvtx, "range_start", lambda name: calls.append(name) or len(calls))
    monkeypatch.setattr(torch.cuda.nvtx, "range_end", lambda handle: calls.append(handle))
    ranges = PhaseRanges()
    for phase in ("compile", "train", "train"):
        ranges.enter(phase)
    ranges.enter(None)
    ranges.enter(None)
    assert calls == ["compile", 1, "train", 3]


def test_a_cpu_build_has_no_ranges():
    ranges = PhaseRanges()
    ranges.enter("train")
    ranges.enter(None)


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


@pytest.mark.parametrize(("steps", "written"), [(0, False), (5, True)])
def test_a_loop_that_ends_early_has_what_there_is(tmp_path, steps, written):
    with StepProfiler(steps, tmp_path) as profiler:
        profiler.begin()
        profiler.step()
    assert (tmp_path / TRACE).exists() is written


def test_a_loop_that_fails_has_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), StepProfiler(5, tmp_path) as profiler:
        profiler.begin()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
