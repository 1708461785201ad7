"""The profiler writes PyTorch's trace and logs the costliest kernels."""

from contextlib import suppress

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from fastae.monitor.recording import Phase
from fastae.training.observers.profile import SHOWN, TRACE, Profile, costliest


def test_a_trace_of_some_steps_is_written_and_its_costliest_operators_are_listed(tmp_path, capsys):
    with Profile(tmp_path, 2) as profile:
        profile.step(1, 0.1)
        profile.phase(Phase.TRAIN)
        torch.ones(300, 300) @ torch.ones(300, 300)
        profile.step(2, 0.2)
        profile.phase(Phase.TRAIN)
        assert not list(tmp_path.iterdir())
        profile.step(3, 0.3)
        profile.phase(Phase.TRAIN)
        profile.step(4, 0.4)
    path, *lines = capsys.readouterr().out.splitlines()
    assert path.endswith(str(tmp_path / TRACE)) and [each.name for each in tmp_path.iterdir()] == [TRACE]
    assert any("aten::mm" in line and "%" in line for line in lines)


@pytest.mark.parametrize(
    ("steps", "error", "written"), [(0, None, []), (5, None, [TRACE]), (5, KeyError, [])]
)
def test_a_loop_that_ends_early_has_a_trace_unless_it_failed(tmp_path, steps, error, written):
    with suppress(KeyError), Profile(tmp_path, steps) as profile:
        profile.phase(Phase.TRAIN)
        profile.step(1, 0.1)
        if error:
            raise error
    assert [path.name for path in tmp_path.iterdir()] == written
    assert not torch.autograd._profiler_enabled(), "a running profiler crashes the process at its exit"


def on_gpu(name, start, length, **options):
    return FunctionEvent(0, name, 1, start, start + length, device_type=DeviceType.CUDA, **options)


def test_the_costliest_kernels_and_the_idle_time_of_the_gpu_are_listed():
    """The GPU works for 80 of 100 us: two streams overlap, and a copy counts as work."""
    events = [
        on_gpu("convolution", 0, 40), on_gpu("convolution", 20, 20), on_gpu("Memcpy HtoD", 40, 20),
        on_gpu("adam", 80, 20), on_gpu("step", 0, 100, is_user_annotation=True),
        FunctionEvent(0, "aten::add", 1, 0, 100),
    ]  # fmt: skip
    idle, *kernels = costliest(events)
    assert "20.0%" in idle and "convolution" in kernels[0]
    assert [line.split()[0] for line in kernels] == ["60.0%", "20.0%", "20.0%"]
    assert len(list(costliest([on_gpu(f"kernel {index}", index, 1) for index in range(50)]))) == 1 + SHOWN
    assert not list(costliest([]))
