"""How far the training loop runs ahead of a GPU, with simulated events; windows that are read later."""

import torch

from fastae.training.run_ahead import AHEAD, PendingWindows, StepQueue
from fastae.training.step_timer import Marks

CPU = torch.device("cpu")


class Event:
    """The end of a step on a GPU that computes only when somebody waits for it."""

    def __init__(self, reached):
        self.reached = reached
        self.waited_for = False

    def query(self):
        return self.reached

    def synchronize(self):
        self.reached = self.waited_for = True


def steps(number, device="cuda", lagging=True):
    """Returns the ends of `number` steps, and the queue to which they were added."""
    queue = StepQueue(torch.device(device))
    events = [Event(reached=not lagging) for _ in range(number)]
    for event in events:
        queue.add(event)
    return events, queue


def test_the_host_stays_a_few_steps_ahead_of_a_slow_gpu_and_counts_its_wait():
    events, queue = steps(20)
    assert [event.waited_for for event in events] == [True] * (20 - AHEAD) + [False] * AHEAD
    assert queue.take_wait() > 0 and queue.take_wait() == 0


def test_the_host_does_not_wait_for_a_fast_gpu_or_on_a_cpu():
    for events, queue in (steps(20, lagging=False), steps(20, "cpu")):
        assert not any(event.waited_for for event in events) and queue.take_wait() == 0


def close(windows, losses):
    """Adds iterations with these losses, in one tensor that each overwrites, and closes the window."""
    loss = torch.zeros(())
    for value in losses:
        windows.add(loss.fill_(value))
    windows.close(
        torch.stack([loss, 2 * loss, 3 * loss]),
        Marks([*range(3 * len(losses) + 1)], [], False, 4),
        waited=0.25,
    )


def test_a_window_keeps_the_figures_of_the_moment_when_it_was_closed():
    windows = PendingWindows(CPU, longest=3, start=10)
    close(windows, [1, 2, 3])
    close(windows, [4, 5])
    first, second = windows.read()
    assert (first.iteration, first.losses, second.iteration, second.losses) == (13, [1, 2, 3], 15, [4, 5])
    assert (second.loss, second.loss_index, second.gradient_norm) == (5, 10e7, 15)
    assert (second.window.iterations, second.window.seconds, second.device_seconds) == (2, 6, 0.25)


def test_the_last_window_may_stay_unread_and_each_is_read_once():
    windows = PendingWindows(CPU, longest=1, start=0)
    read = []
    for value in (1, 2, 3):
        close(windows, [value])
        read.append([metrics.loss for metrics in windows.read(keep_last=1)])
    assert read == [[], [1], [2]]
    assert [[metrics.loss for metrics in windows.read()] for _ in range(2)] == [[3], []]


def test_the_losses_of_the_open_window_are_those_since_the_last_was_closed():
    windows = PendingWindows(CPU, longest=2, start=0)
    close(windows, [1, 2])
    windows.add(torch.tensor(3.0))
    assert (windows.first, windows.open_losses()) == (3, [3])
