"""The poller has a fixed rate and bounded memory, and survives a reading that fails or hangs."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from fastae.monitor import poller as module
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Column

from .conftest import DEVICE_LIMITED
from .recorded_nvml import BUSY, machine_of


def stub(read=lambda: 1.0):
    """Returns a reader that replaces the host's."""
    return SimpleNamespace(read=lambda: {"host/cpu": read()})


def test_a_full_column_is_thinned_and_stays_evenly_spaced():
    column = Column("host/cpu", capacity=8)
    for number in range(1000):
        column.add(number, -number)
        assert len(column.values) <= 8
    times, values = np.array(column.times), np.array(column.values)
    assert times[0] == 0 and len(times) > 4 and len(set(np.diff(times))) == 1
    assert np.array_equal(values, -times) and (column.first, column.last) == (0, -999)


@pytest.mark.parametrize(("cost", "hz", "step"), [(0.0, 20, 0.05), (0.7, 2, 1.0)])
def test_readings_happen_at_multiples_of_the_tick_and_a_slow_one_skips_some(simulate, clock, cost, hz, step):
    def read():
        clock.now += cost
        return 1.0

    recording = simulate(host=stub(read), hz=hz, seconds=20.0).recording()
    times = np.array(recording.columns["host/cpu"].times)
    assert times[:-1] == pytest.approx(step * np.arange(len(times) - 1))
    assert recording.hz == pytest.approx(1 / step, rel=0.1)


def test_tensorboards_tags_have_units_and_the_hosts_come_last(simulate):
    poller = simulate(BUSY, seconds=4.0, loop=DEVICE_LIMITED)
    means = poller.means()
    assert means["utilisation/GPU busy (%)"] == 98 and means["utilisation/GPU power (W)"] == 600
    hosts = ["utilisation/host CPU (cores)", "utilisation/host CPU, all programs (cores)"]
    assert sorted(means)[-3:] == [*hosts, "utilisation/host memory (GiB)"]
    assert not any("energy" in tag or "slowed" in tag for tag in means)
    assert poller.means() == {}, "since the last call"
    several = simulate(library=machine_of(BUSY, BUSY), seconds=4.0).means()
    assert "utilisation/GPU 1 busy (%)" in several and "utilisation/host CPU (cores)" in several


def breaks():
    raise RuntimeError("a surprise")


@pytest.mark.parametrize(("read", "failure"), [(lambda: 1.0, None), (breaks, "RuntimeError: a surprise")])
def test_a_thread_reads_until_it_is_stopped_or_a_reading_breaks(read, failure):
    poller = Poller([stub(read)], 100)
    poller.start()
    time.sleep(0.05)
    poller.stop()
    assert poller.failure == failure and ("host/cpu" in poller.recording().columns) is (failure is None)


def test_a_reading_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_STOP", 0.05)
    released = threading.Event()
    poller = Poller([stub(lambda: released.wait(30))], 100)
    poller.start()
    poller.stop()
    assert "did not return" in poller.failure
    released.set()
