"""The timer of the training loop, on the host; `tests/gpu` holds the same on CUDA events."""

import time

import pytest
import torch

from fastae.training.step_timer import StepTimer


def test_tells_waiting_for_data_from_working():
    timer = StepTimer(torch.device("cpu"), batch_size=10)
    time.sleep(0.05)  # before `begin`: not counted
    timer.begin()
    for work in (0.02, 0.02, 0.02, 0.1):
        timer.fetch()
        time.sleep(0.01)
        timer.data_ready()
        time.sleep(work)
        timer.step_done()
    time.sleep(0.05)  # after the last step: not counted
    window = timer.split().measure()
    assert window.iterations == 4
    assert window.seconds == pytest.approx(0.20, rel=0.2)
    assert window.images_per_second == pytest.approx(40 / window.seconds)
    assert window.data_wait == pytest.approx(0.2, abs=0.05)
    assert window.step_p50 == pytest.approx(0.03, rel=0.3)
    assert 0.05 < window.step_p95 <= 0.15


def test_a_window_starts_afresh():
    timer = StepTimer(torch.device("cpu"), batch_size=1)
    for _ in range(2):
        timer.begin()
        timer.fetch()
        timer.data_ready()
        timer.step_done()
        assert timer.split().measure().iterations == 1
