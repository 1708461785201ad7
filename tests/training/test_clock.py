"""The clock of the training loop: with the host's clock, and with simulated events of a GPU.

`tests/gpu` tests it with CUDA events.
"""

import math

import pytest
import torch

from fastae.monitor import loop_timer
from fastae.training.clock import AHEAD, Clock

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    """The time that the host's clock shows, in a list."""
    now = [100.0]
    monkeypatch.setattr(loop_timer.time, "perf_counter", lambda: now[0])
    return now


def iterate(clock, losses, now=None, gap=0, wait=0, work=2):
    """Makes iterations with these losses, in one tensor that each overwrites; returns it."""
    loss = torch.zeros(())
    for value in losses:
        for mark, seconds in ((clock.fetch, gap), (clock.data_ready, wait)):
            if now:
                now[0] += seconds
            mark()
        if now:
            now[0] += work
        clock.step_done(loss.fill_(value))
    return loss


def close(clock, loss):
    clock.close(torch.stack([loss, 2 * loss, 3 * loss]))


def test_the_clock_tells_waiting_for_data_from_working(now):
    clock = Clock(CPU, batch_size=10, longest=4)
    for _ in range(2):  # a window starts afresh
        now[0] += 5  # before `skip`: not counted
        clock.skip()
        for gap, wait, work in ((0, 1, 2), (1, 1, 2), (0, 1, 2), (0, 1, 9)):
            loss = iterate(clock, [0], now, gap, wait, work)
        close(clock, loss)
        (window,) = clock.read()
        assert (window.images, window.seconds, window.data_wait) == (40, 20, 4)
        assert window.images_per_second == pytest.approx(40 / 20)
        assert window.step_p50 == 3.5 and window.step_p95 == pytest.approx(9.1)


def test_the_time_of_a_checkpoint_is_not_counted(now):
    clock = Clock(CPU, batch_size=1, longest=4)
    clock.skip()
    for saves in (True, True, False, True):
        if saves:
            now[0] += 50
            clock.exclude()
        loss = iterate(clock, [0], now)
    close(clock, loss)
    (window,) = clock.read()
    assert window.seconds == 8


def test_a_loss_that_is_not_finite_on_any_rank_is_so_on_all(now):
    """Ranks that did not agree would name different iterations, or call the failure a lost rank."""
    theirs = torch.tensor([1.0, 1.0, 1.0, math.nan, 1.0])
    clock = Clock(CPU, batch_size=4, longest=2)
    clock.skip()
    clock.close(iterate(clock, [3, 3], now).expand(3), lambda values: (values + theirs) / 2)
    (window,) = clock.read()
    assert (window.loss, window.losses[1]) == (2, 2) and math.isnan(window.losses[0])


def test_a_window_keeps_the_figures_of_the_moment_when_it_was_closed(now):
    clock = Clock(CPU, batch_size=4, longest=3, start=10)
    clock.skip()
    close(clock, iterate(clock, [1, 2, 3], now))
    close(clock, iterate(clock, [4, 5], now))
    first, second = clock.read()
    assert (first.iteration, first.losses, second.iteration, second.losses) == (13, [1, 2, 3], 15, [4, 5])
    assert (second.loss, second.loss_index, second.gradient_norm) == (5, 10e7, 15)
    assert (second.images, second.seconds) == (8, 4)


def test_the_last_window_may_stay_unread_and_each_is_read_once():
    clock = Clock(CPU, batch_size=1, longest=1)
    clock.skip()
    read = []
    for value in (1, 2, 3):
        close(clock, iterate(clock, [value]))
        read.append([window.loss for window in clock.read(keep_last=1)])
    assert read == [[], [1], [2]]
    assert [[window.loss for window in clock.read()] for _ in range(2)] == [[3], []]


def test_the_losses_of_the_open_window_are_those_since_the_last_was_closed():
    clock = Clock(CPU, batch_size=1, longest=2)
    clock.skip()
    close(clock, iterate(clock, [1, 2]))
    iterate(clock, [3])
    assert (clock.first, clock.open_losses()) == (3, [3])


def test_the_first_step_of_a_resumed_run_is_not_timed_but_its_loss_is_kept(now):
    clock = Clock(CPU, batch_size=4, longest=2)
    clock.skip()
    iterate(clock, [1], now, work=60)
    clock.skip()
    close(clock, iterate(clock, [2], now))
    (window,) = clock.read()
    assert (window.losses, window.images, window.seconds) == ([1, 2], 4, 2)


class Event:
    """A moment of a GPU that computes only when somebody waits for it."""

    def __init__(self, reached=False):
        self.reached = reached
        self.waited_for = False

    def query(self):
        return self.reached

    def synchronize(self):
        self.reached = self.waited_for = True

    def elapsed_time(self, later):
        return 1e3


@pytest.fixture
def on_gpu(monkeypatch):
    """A function that makes a clock with simulated events; returns it, a loss and the ends of its steps."""

    def make(steps, lagging):
        clock = Clock(CPU, batch_size=1, longest=steps)
        marks = []
        monkeypatch.setattr(clock, "_on_gpu", True)
        monkeypatch.setattr(clock, "_mark", lambda: marks.append(Event(not lagging)) or marks[-1])
        monkeypatch.setattr(torch.cuda, "Event", type("Ready", (Event,), {"record": lambda self: None}))
        clock.skip()
        return clock, iterate(clock, [0] * steps), marks[3::3]

    return make


def test_the_host_stays_a_few_steps_ahead_of_a_slow_gpu_and_counts_its_wait(on_gpu):
    clock, loss, ends = on_gpu(20, lagging=True)
    assert [end.waited_for for end in ends] == [True] * (20 - AHEAD) + [False] * AHEAD
    close(clock, loss)
    (window,) = clock.read()
    assert window.device_wait_share > 0 and window.seconds == 60


def test_a_wait_before_a_skip_is_not_of_the_window(on_gpu):
    clock, _, _ = on_gpu(AHEAD + 5, lagging=True)
    clock.skip()
    clock.close(torch.zeros(3))  # of no step that is timed
    assert clock._closed[-1].waited == 0


def test_the_wait_before_the_ranks_agree_is_counted(on_gpu, monkeypatch):
    clock, loss, ends = on_gpu(AHEAD, lagging=True)
    clock.drain()
    assert all(end.waited_for for end in ends)
    close(clock, loss)
    (window,) = clock.read()
    assert window.device_wait_share > 0


def test_the_host_does_not_wait_for_a_fast_gpu_or_on_a_cpu(on_gpu):
    *_, ends = on_gpu(20, lagging=False)
    assert not any(end.waited_for for end in ends)
    alone = Clock(CPU, batch_size=1, longest=20)
    alone.skip()
    close(alone, iterate(alone, range(20)))
    (window,) = alone.read()
    assert window.device_wait_share is None
