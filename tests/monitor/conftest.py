"""The real poller in simulated time, on recorded machines."""

from types import SimpleNamespace

import pytest

from fastae.monitor import gpu_reader, poller
from fastae.monitor.host import COLUMNS
from fastae.monitor.nvml import visible_gpus
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Phase

from .recorded_nvml import machine_of

OUR_PID = 4_000_001
"""Above what Linux gives to any process by default."""


class StubHost:
    """A host whose processes keep so many cores busy."""

    columns = COLUMNS

    def __init__(self, cpu=1.0, machine=1.0, is_ours=lambda pid: pid == OUR_PID):
        self.is_ours = is_ours
        values = {"host/cpu": cpu, "host/machine_cpu": machine, "host/memory": 2.0}
        self.values = {name: value for name, value in values.items() if value is not None}

    def queries(self):
        return [(1.0, lambda: self.values)]


@pytest.fixture
def clock(monkeypatch):
    """Simulated seconds: `now`, and the `cpu` and `wall` time by which calls are timed."""
    clock = SimpleNamespace(now=0.0, cpu=0.0, wall=0.0)
    simulated = SimpleNamespace(
        monotonic=lambda: clock.now, thread_time=lambda: clock.cpu, perf_counter=lambda: clock.wall
    )
    for module in (poller, gpu_reader):
        monkeypatch.setattr(module, "time", simulated)
    return clock


@pytest.fixture
def simulate(clock):
    """Polls a card in a series of states, or a recorded machine, for so many seconds of training; returns the
    poller. loop: what the training loop records in each second."""

    def run(states=(), *, library=None, host=None, seconds=30.0, hz=10, loop=None):
        library = library or machine_of(*([states] if states else []))
        clock.now = 0.0
        for card in library.cards:
            card.clock = lambda: clock.now
        found = Poller(host or StubHost(), hz, library, lambda nvml: visible_gpus(nvml, None), None)
        found.enter(Phase.TRAIN)

        def wait(until_due):
            before, clock.now = clock.now, clock.now + max(0.0, until_due)
            if loop and int(before) < int(clock.now):
                found.record(*loop)
            return clock.now > seconds - 1e-6

        found._stopping = SimpleNamespace(wait=wait)
        found._run()
        found._ended = clock.now
        assert found._failure is None
        return found

    return run
