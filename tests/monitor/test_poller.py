"""The poller itself: rates, memory, cost, clock, and what happens when a reading breaks or hangs."""

import threading
import time

import numpy as np
import pytest

from fastae.monitor import poller as module
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Column, Metric, Phase

from .recorded_nvml import BUSY, machine_of


class Stub:
    """Instead of the host: one fast and one slow query."""

    def __init__(self, fast=lambda: 1.0, slow=lambda: 2.0):
        self.columns = {"host/fast": Metric("fast", "%"), "host/slow": Metric("slow", "%")}
        self.read = fast, slow

    def queries(self):
        fast, slow = self.read
        return [(0.0, lambda: {"host/fast": fast()}), (1.0, lambda: {"host/slow": slow()})]


def test_a_full_column_is_thinned_and_stays_even():
    column = Column(Metric("fast", "%"), capacity=8)
    for number in range(1000):
        column.add(number, -number)
        assert len(column) <= 8
    assert column.times[0] == 0 and len(column) > 4 and len(set(np.diff(column.times))) == 1
    assert np.array_equal(column.values, -column.times)


def test_slow_metrics_remain_after_the_fast_ones_were_thinned(simulate, monkeypatch):
    """Each metric is thinned by itself: in one table every second row might be one without them."""
    monkeypatch.setattr(module, "Column", lambda metric: Column(metric, 64))
    columns = simulate(host=Stub(), seconds=1000.0).recording().columns
    for name in ("host/fast", "host/slow"):
        assert 32 <= len(columns[name]) <= 64 and columns[name].times[-1] > 900


def test_readings_are_on_the_grid(simulate):
    columns = simulate(host=Stub(), hz=20, seconds=3.0).recording().columns
    assert columns["host/fast"].times == pytest.approx(np.arange(61) / 20)
    assert columns["host/slow"].times == pytest.approx([0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["cpu", "wall"])
def test_a_dear_call_is_made_less_often_and_the_others_are_not(simulate, clock, kind):
    """The first call, which is slower than all that follow, does not count."""
    share = {"cpu": module.CPU_SHARE, "wall": module.BLOCKED_SHARE}[kind]

    def dear():
        vars(clock)[kind] += 5 * share if clock.now else 1000.0
        return 1.0

    columns = simulate(host=Stub(fast=dear), seconds=60.0).recording().columns
    assert len(columns["host/slow"]) == 61
    pauses = np.diff(columns["host/fast"].times)[2:-1]
    assert len(pauses) > 8 and pauses == pytest.approx(5.0)


def test_phases(clock):
    poller = Poller(Stub(), 10, None, None, None)
    for phase, seconds in ((Phase.COMPILE, 20), (Phase.TRAIN, 2), (Phase.TRAIN, 3)):
        poller.enter(phase)
        clock.now += seconds
    poller._ended = clock.now
    assert poller.recording().stretches() == [
        (Phase.BEFORE, 0, 0), (Phase.COMPILE, 0, 20), (Phase.TRAIN, 20, 5)]  # fmt: skip


def test_tensorboards_tags_have_units_and_the_hosts_come_last(simulate):
    poller = simulate(BUSY, seconds=4.0, loop=(1, 1.0, 0.0, 0.0))
    means = poller.means()
    assert means["utilisation/GPU busy (%)"] == 98 and means["utilisation/GPU power (W)"] == 600
    hosts = ["utilisation/host CPU (cores)", "utilisation/host CPU, all programs (cores)"]
    assert sorted(means)[-3:] == [*hosts, "utilisation/host memory (GiB)"]
    assert poller.means() == {}, "since the last call"
    several = simulate(library=machine_of(BUSY, BUSY), seconds=4.0).means()
    assert "utilisation/GPU 1 busy (%)" in several and "utilisation/host CPU (cores)" in several


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_thread_reads_until_it_is_stopped(seconds):
    poller = Poller(Stub(), 100, None, None, None)
    poller.start()
    time.sleep(seconds)
    poller.stop()
    recording = poller.recording()
    assert len(recording.columns["host/fast"]) >= 1 and len(recording.columns["host/slow"]) >= 1
    assert recording.failure is None


def test_a_reading_that_breaks_ends_the_poller_alone():
    def breaks():
        raise RuntimeError("a surprise")

    poller = Poller(Stub(fast=breaks), 100, None, None, None)
    poller.start()
    poller.stop()
    assert poller.recording().failure == "RuntimeError: a surprise"


def test_a_reading_that_hangs_is_not_waited_for_and_leaves_nvml_open(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_STOP", 0.05)
    released, library = threading.Event(), machine_of(BUSY)
    poller = Poller(Stub(fast=lambda: released.wait(30)), 100, library, lambda nvml: [], None)
    poller.start()
    poller.stop()
    assert "did not return" in poller.recording().failure and library.opened == 1
    released.set()
