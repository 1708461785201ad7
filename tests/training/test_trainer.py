"""How far the training loop runs ahead of a GPU, by events that a test sets; its initial weights."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from fastae.data.loaders import host
from fastae.training.session import build_model
from fastae.training.trainer import AHEAD, Trainer

from ..commands import same_state
from ..conftest import small_config


class Event:
    """The end of a step on a GPU that computes only when somebody waits for it."""

    def __init__(self):
        self.reached = self.waited_for = False

    def query(self):
        return self.reached

    def synchronize(self):
        self.reached = self.waited_for = True


def steps(number, device="cuda", lagging=True):
    """The ends of so many steps that a trainer has queued, and the trainer."""
    trainer = SimpleNamespace(
        _step=SimpleNamespace(device=torch.device(device)), _queued=deque(), _device_seconds=0.0
    )
    events = [Event() for _ in range(number)]
    for event in events:
        event.reached = not lagging
        Trainer._stay_close(trainer, event)
    return events, trainer


def test_a_gpu_that_lags_has_a_few_steps_before_it_and_the_wait_is_the_devices():
    events, trainer = steps(20)
    assert [event.waited_for for event in events] == [True] * (20 - AHEAD) + [False] * AHEAD
    assert trainer._device_seconds > 0
    assert host.SLOTS >= AHEAD + 2, "else the loop would wait for a buffer, as if for data"


def test_nothing_waits_for_a_gpu_that_keeps_up_nor_on_a_cpu():
    for events, trainer in (steps(20, lagging=False), steps(20, "cpu")):
        assert not any(event.waited_for for event in events) and trainer._device_seconds == 0


def test_models_made_at_once_have_the_weights_of_their_seeds_and_the_users_generator_is_left_alone():
    """PyTorch's generator is the process's."""
    config = small_config("nowhere", "out", image_size=64)
    alone = build_model(config, torch.device("cpu")).state_dict()
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build_model(config, torch.device("cpu")).state_dict(), range(8)))
    assert all(same_state(alone, other) for other in made)
    assert torch.equal(torch.get_rng_state(), before)
