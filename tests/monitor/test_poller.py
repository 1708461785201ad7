"""The poller itself: rate, memory, clock, and what happens when a reading breaks or hangs."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from fastae.monitor import poller as module
from fastae.monitor.poller import Poller
from fastae.monitor.recording import METRICS, Column, Phase

from .conftest import DEVICE_LIMITED
from .recorded_nvml import BUSY, machine_of


def stub(read=lambda: 1.0):
    """Instead of the host."""
    return SimpleNamespace(read=lambda: {"host/cpu": read()})


def test_a_full_column_is_thinned_and_stays_even():
    column = Column(METRICS["host/cpu"], capacity=8)
    for number in range(1000):
        column.add(number, -number)
        assert len(column) <= 8
    assert column.times[0] == 0 and len(column) > 4 and len(set(np.diff(column.times))) == 1
    assert np.array_equal(column.values, -column.times) and (column.first, column.last) == (0, -999)


def test_readings_are_on_the_grid_and_their_rate_is_reported(simulate):
    recording = simulate(host=stub(), hz=20, seconds=3.0).recording()
    assert recording.columns["host/cpu"].times == pytest.approx(np.arange(61) / 20)
    assert recording.hz == pytest.approx(20, rel=0.05)


def test_a_slow_reading_skips_those_that_it_overran(simulate, clock):
    """Each takes 0.7 s, at two a second: it is made every second."""

    def slow():
        clock.now += 0.7
        return 1.0

    recording = simulate(host=stub(slow), hz=2, seconds=20.0).recording()
    assert np.diff(recording.columns["host/cpu"].times)[:-1] == pytest.approx(1.0)
    assert recording.hz == pytest.approx(1, rel=0.1)


def test_phases(clock):
    poller = Poller([stub()], 10)
    for phase, seconds in ((Phase.COMPILE, 20), (Phase.TRAIN, 2), (Phase.TRAIN, 3)):
        poller.enter(phase)
        clock.now += seconds
    poller._ended = clock.now
    assert poller.recording().stretches() == [
        (Phase.BEFORE, 0, 0), (Phase.COMPILE, 0, 20), (Phase.TRAIN, 20, 5)]  # fmt: skip


def test_tensorboards_tags_have_units_and_the_hosts_come_last(simulate):
    poller = simulate(BUSY, seconds=4.0, loop=DEVICE_LIMITED)
    means = poller.means()
    assert means["utilisation/GPU busy (%)"] == 98 and means["utilisation/GPU power (W)"] == 600
    hosts = ["utilisation/host CPU (cores)", "utilisation/host CPU, all programs (cores)"]
    assert sorted(means)[-3:] == [*hosts, "utilisation/host memory (GiB)"]
    assert not any("energy" in tag or "throttled" in tag for tag in means)
    assert poller.means() == {}, "since the last call"
    several = simulate(library=machine_of(BUSY, BUSY), seconds=4.0).means()
    assert "utilisation/GPU 1 busy (%)" in several and "utilisation/host CPU (cores)" in several


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_thread_reads_until_it_is_stopped(seconds):
    poller = Poller([stub()], 100)
    poller.start()
    time.sleep(seconds)
    assert poller.stop()
    recording = poller.recording()
    assert len(recording.columns["host/cpu"]) >= 1 and recording.failure is None


def test_a_reading_that_breaks_ends_the_poller_alone():
    def breaks():
        raise RuntimeError("a surprise")

    poller = Poller([stub(breaks)], 100)
    poller.start()
    assert poller.stop() and poller.recording().failure == "RuntimeError: a surprise"


def test_a_reading_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_STOP", 0.05)
    released = threading.Event()
    poller = Poller([stub(lambda: released.wait(30))], 100)
    poller.start()
    assert not poller.stop() and "did not return" in poller.recording().failure
    released.set()
