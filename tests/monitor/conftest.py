"""Runs the real poller in simulated time, on recorded machines."""

from types import SimpleNamespace

import pytest

from fastae.device import gpu_reader
from fastae.device.nvml import all_gpus, gpu_of_cuda
from fastae.monitor import poller
from fastae.monitor.monitor import readers_of
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo

from .recorded_nvml import machine_of

OUR_PID = 4_000_001
"""It is above the process ids that Linux uses by default."""

DALI = RunInfo(loader="dali", compiled=False, amp=False, batch_size=64)
HOST = RunInfo(loader="host", compiled=True, amp=True, batch_size=64)
ANY_LOOP = RunInfo()
RESIDENT = RunInfo(loader="resident", compiled=True, amp=True, batch_size=64)


def loop(data=0.0, device=0.0, images=1000, queued=None):
    """Returns what a training loop records in each second.

    Args:
        data: the share of the time in which the device has no batch.
        device: the share of the time in which the host waits for the device; None for a run on the CPU.
        images: the images/s.
        queued: the share of the batches that find the device at work; None for a loop that does not know it.
    """
    shares = {"data_wait": data, "device_wait": device, "queued": queued}
    known = {name: 100 * share for name, share in shares.items() if share is not None}
    return {"images_per_second": images, **known, "seconds": 1.0}


DEVICE_LIMITED, DATA_LIMITED = loop(0.001, 0.4), loop(0.9, 0.01)


class StubHost:
    """A host whose figures never change.

    Args:
        cpu: the cores that the run keeps busy.
        machine: the cores that all programs keep busy.
        others: more metrics.
    """

    def __init__(self, cpu=1.0, machine=1.0, **others):
        values = {"cpu": cpu, "machine_cpu": machine, "memory": 2.0, **others}
        self.values = {f"host/{name}": value for name, value in values.items() if value is not None}

    def read(self):
        return self.values


@pytest.fixture
def clock(monkeypatch):
    """A simulated clock, whose attribute `now` is the time in seconds."""
    clock = SimpleNamespace(now=0.0)
    simulated = SimpleNamespace(monotonic=lambda: clock.now, time_ns=lambda: 10**18)
    for module in (poller, gpu_reader):
        monkeypatch.setattr(module, "time", simulated)
    monkeypatch.setattr(gpu_reader, "sees_all_processes", lambda: True)
    return clock


@pytest.fixture
def simulate(clock):
    """Returns a function that polls a card, or a recorded machine, and returns the poller.

    Args of the function:
        states: the states of the card, one for each poll.
        library: the recorded machine, instead of `states`.
        host: the reader of the host.
        seconds: the simulated time.
        hz: the number of polls per second.
        loop: what the training loop records in each second.
        phases: (start in seconds, phase) of each phase.
    """

    def run(states=(), *, library=None, host=None, seconds=30.0, hz=2, loop=None, phases=((0, Phase.TRAIN),)):
        library = library or machine_of(*([states] if states else []))
        clock.now = 0.0
        for card in library.cards:
            card.clock = lambda: clock.now
        devices = all_gpus(library)
        if any(card.board for card in library.cards):
            devices = [gpu_of_cuda(library, "board", None)]
        readers = [*readers_of(library, devices, lambda: (OUR_PID,)), host or StubHost()]
        found, left = Poller(readers, hz), list(phases)

        def wait(until_due):
            before, clock.now = clock.now, clock.now + max(0.0, until_due)
            if loop and int(before) < int(clock.now):
                found.record(loop, clock.now)
            while left and left[0][0] <= clock.now:
                found.enter(left.pop(0)[1])
            return clock.now > seconds - 1e-6

        wait(0.0)
        found._stopping = SimpleNamespace(wait=wait)
        found._run()
        found._ended = clock.now
        assert found.failure is None
        return found

    return run
