"""The clock of the training loop, on the host; `tests/gpu` holds the same on CUDA events."""

import time

import pytest
import torch

from fastae.training.step_timer import StepClock


def test_tells_waiting_for_data_from_working():
    clock = StepClock(torch.device("cpu"), batch_size=10)
    time.sleep(0.05)  # before `begin`: not counted
    clock.begin()
    for work in (0.02, 0.02, 0.02, 0.1):
        time.sleep(0.01)
        clock.data_ready()
        time.sleep(work)
        clock.step_done()
    time.sleep(0.05)  # after the last step: not counted
    window = clock.close()
    assert window.iterations == 4
    assert window.seconds == pytest.approx(0.20, rel=0.2)
    assert window.images_per_second == pytest.approx(40 / window.seconds)
    assert window.wait_share == pytest.approx(0.2, abs=0.05)
    assert window.step_p50 == pytest.approx(0.03, rel=0.3)
    assert 0.05 < window.step_p95 <= 0.15


def test_a_window_starts_afresh():
    clock = StepClock(torch.device("cpu"), batch_size=1)
    for _ in range(2):
        clock.begin()
        clock.data_ready()
        clock.step_done()
        assert clock.close().iterations == 1
