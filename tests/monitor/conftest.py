import pytest

from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import COLUMNS
from fastae.monitor.nvml import visible_gpus
from fastae.monitor.poller import Poller, Query
from fastae.monitor.recording import Phase

from .recorded_nvml import Card, RecordedNvml

OUR_PID = 4_000_001
"""Above what Linux gives to any process by default."""


class StubHost:
    """A host whose processes keep so many cores busy."""

    def __init__(self, cpu=1.0, machine=1.0):
        self.values = {"host/cpu": cpu, "host/machine_cpu": machine, "host/memory": 2.0}

    def columns(self):
        return COLUMNS

    def queries(self):
        return [Query(lambda: {name: value for name, value in self.values.items() if value is not None}, 1.0)]

    def record(self):
        return {}


class SimulatedPoller(Poller):
    """The real poller in simulated time: `run` is its thread's loop without the waiting."""

    clock = 0.0

    def _now(self):
        return self.clock

    def run(self, seconds, per_second=None):
        """Polls for so many seconds; `per_second`: what the loop records each second."""
        end, second = self.clock + seconds, self.clock + 1
        while (due := min(query.due for query in self._queries)) < end:
            while per_second and due > second:
                self.clock, second = second, second + 1
                self.record(*per_second)
            self.clock = due
            self._poll(due + self._tick / 2)
            for query in self._queries:  # on a busy machine a call may well take long
                query.cost = query._last = 0.0
        self.clock = self._ended = end
        self._started = 0.0


@pytest.fixture
def simulate():
    """A recording of so many seconds of training, on a series of states or several cards."""

    def run(states=None, *, library=None, seconds=30.0, hz=10, cpu=1.0, machine=1.0, loop=None):
        library = library or RecordedNvml(Card(list(states)))
        library.nvmlInit()
        readers = [
            GpuReader(library, device, f"gpu{place}", lambda pid: pid == OUR_PID)
            for place, device in enumerate(visible_gpus(library, None))
        ]
        poller = SimulatedPoller(StubHost(cpu, machine), readers, hz)
        for card in library.cards:
            card.clock = lambda: poller.clock
        poller.enter(Phase.TRAIN)
        poller.run(seconds, loop)
        return poller.recording()

    return run


@pytest.fixture
def make_poller():
    return lambda *readers, host=None, hz=10: SimulatedPoller(host or StubHost(), readers, hz)
