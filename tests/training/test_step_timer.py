"""The timer of the training loop with the host's clock. `tests/gpu` tests it with CUDA events."""

import pytest
import torch

from fastae.training import step_timer
from fastae.training.step_timer import StepTimer


def test_the_timer_tells_waiting_for_data_from_working(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"), batch_size=10)
    for _ in range(2):  # a window starts afresh
        now[0] += 5  # before `begin`: not counted
        timer.begin()
        for gap, wait, work in ((0, 1, 2), (1, 1, 2), (0, 1, 2), (0, 1, 9)):
            now[0] += gap
            timer.fetch()
            now[0] += wait
            timer.data_ready()
            now[0] += work
            timer.step_done()
        window = timer.split().measure()
        assert (window.iterations, window.seconds) == (4, 20)
        assert window.images_per_second == pytest.approx(40 / 20)
        assert window.data_wait == pytest.approx(4 / 20)
        assert window.step_p50 == 3.5 and window.step_p95 == pytest.approx(9.1)


def test_the_time_of_a_checkpoint_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"), batch_size=1)
    timer.begin()
    for saves in (True, True, False, True):
        if saves:
            timer.exclude()
            now[0] += 50
        timer.fetch()
        timer.data_ready()
        now[0] += 2
        timer.step_done()
    assert timer.split().measure().seconds == 8
