"""NVTX ranges by phase, and PyTorch's trace."""

from contextlib import suppress

import pytest
import torch

from fastae.monitor.profiler import TRACE, PhaseRanges, StepProfiler


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
