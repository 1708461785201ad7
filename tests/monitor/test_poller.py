"""The poller itself: its rates, its memory, its clock, and what happens when a reading breaks or hangs."""

import threading
import time

import numpy as np
import pytest

from fastae.monitor import poller as module
from fastae.monitor.poller import Poller, Query, fair_share
from fastae.monitor.recording import Column, Metric, Phase

from .conftest import StubHost
from .recorded_nvml import BUSY, FALLS_OFF_THE_BUS

FAST, SLOW = Metric("fast", "fast", "%"), Metric("slow", "slow", "%")


class Stub:
    """A reader with one fast and one slow query; `costs`: seconds that each seems to take."""

    def __init__(self, fast=lambda: 1.0, slow=lambda: 2.0):
        self.read = fast, slow

    def columns(self):
        return {"gpu0/fast": FAST, "gpu0/slow": SLOW}

    def queries(self):
        fast, slow = self.read
        return [Query(lambda: {"gpu0/fast": fast()}), Query(lambda: {"gpu0/slow": slow()}, 1.0)]

    def record(self):
        return None


def test_a_full_column_is_thinned_and_stays_even():
    column = Column(FAST, capacity=8)
    for number in range(1000):
        column.add(number, number % 3, -number)
        assert len(column) <= 8
    assert column.times[0] == 0 and len(column) > 4 and len(set(np.diff(column.times))) == 1
    assert np.array_equal(column.values, -column.times)
    assert np.array_equal(column.spans, column.times % 3)


def test_slow_metrics_are_still_there_after_the_fast_ones_were_thinned(make_poller):
    """Each metric is thinned by itself: in one table every second row might be one without them."""
    poller = make_poller(Stub())
    poller._columns = {name: Column(each.metric, 64) for name, each in poller._columns.items()}
    poller.run(1000.0)
    columns = poller.recording().columns
    for name in ("gpu0/fast", "gpu0/slow", "host/cpu"):
        assert 32 <= len(columns[name]) <= 64 and columns[name].times[-1] > 900


def test_readings_are_on_the_grid(make_poller):
    poller = make_poller(Stub(), hz=20)
    poller.run(3.0)
    columns = poller.recording().columns
    assert columns["gpu0/fast"].times == pytest.approx(np.arange(60) / 20)
    assert columns["gpu0/slow"].times == pytest.approx([0, 1, 2])


def test_a_fair_share_leaves_the_cheap_ones_alone():
    assert fair_share([0.1, 0.2, 0.3]) == float("inf")
    share = fair_share([0.1, 0.2, 5.0, 3.0])
    assert share == pytest.approx((1 - 0.1 - 0.2) / 2)


def test_only_the_dear_query_is_asked_less_often(make_poller):
    """CPU time of a query is measured; here it is what the test says."""
    poller = make_poller(Stub())
    dear, cheap = poller._queries[:2]
    poller._share = fair_share([0.02 / module.BUDGET / 0.1, 1e-5 / module.BUDGET / 1.0])
    for query, cpu in ((dear, 0.02), (cheap, 1e-5)):
        query.took(0.5, 0.0)  # the first call, which does not count
        assert query.cost == 0
        query.took(cpu, 0.0)
    assert dear.cost / poller._share == pytest.approx(0.02 / module.BUDGET, rel=0.01)  # all of the budget
    assert cheap.cost / poller._share < 0.01


def test_a_call_that_waits_delays_the_others_a_quarter_of_the_time_at_most():
    query = Query(dict)
    query.took(0.0, 0.04)
    query.took(0.0, 0.04)
    assert query.cost == pytest.approx(0.04 / module.BLOCKED)


def test_phases_and_totals(make_poller):
    poller = make_poller(Stub())
    for phase, seconds, images in ((Phase.COMPILE, 20, 64), (Phase.TRAIN, 2, 6400), (Phase.TRAIN, 3, 6400)):
        poller.enter(phase)
        poller.run(seconds)
        poller.record(images, seconds, 0.5, 0.25)
    recording = poller.recording()
    assert [(span.phase, span.start) for span in recording.spans] == [
        (Phase.BEFORE, 0), (Phase.COMPILE, 0), (Phase.TRAIN, 20)]  # fmt: skip
    assert recording.ends() == [0, 20, 25] and recording.seconds == 25
    totals = recording.loop[Phase.TRAIN]
    assert (totals.images, totals.seconds, totals.data_wait, totals.device_wait) == (12800, 5, 1.0, 0.5)
    assert list(recording.columns["loop/data_wait"].values) == pytest.approx([2.5, 25, 100 / 6])


def test_means_since_the_last_call(make_poller):
    poller = make_poller(Stub(slow=iter(range(100)).__next__))
    poller.run(4.0, per_second=(1, 1.0, 0.0, 0.0))
    means = poller.means()
    assert means["gpu0/slow"] == 1.5 and means["host/cpu"] == 1.0 and "loop/data_wait" not in means
    assert poller.means() == {}


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_thread_reads_until_it_is_stopped(seconds):
    poller = Poller(StubHost(), [Stub()], hz=100)
    poller.start()
    time.sleep(seconds)
    assert poller.stop()
    recording = poller.recording()
    assert len(recording.columns["gpu0/fast"]) >= 1 and len(recording.columns["gpu0/slow"]) >= 1
    assert not recording.hung and recording.failure is None


def test_a_reading_that_breaks_ends_the_poller_alone():
    def breaks():
        raise RuntimeError("a surprise")

    poller = Poller(StubHost(), [Stub(fast=breaks)], hz=100)
    poller.start()
    assert poller.stop() and poller.recording().failure == "RuntimeError: a surprise"


def test_a_reading_that_hangs_is_not_waited_for_(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_STOP", 0.05)
    released = threading.Event()
    poller = Poller(StubHost(), [Stub(fast=lambda: released.wait(30))], hz=100)
    poller.start()
    assert not poller.stop() and poller.recording().hung
    released.set()


def test_a_lost_gpu_does_not_stop_the_host(simulate):
    recording = simulate(FALLS_OFF_THE_BUS, seconds=20.0)
    assert len(recording.columns["gpu0/gpu_busy"]) == 50 and len(recording.columns["host/cpu"]) == 20
    assert recording.gpus[0].lost == "NVML_ERROR_GPU_IS_LOST"


def test_columns_are_named_by_gpu(simulate):
    assert {"gpu0/power", "host/cpu", "loop/data_wait"} <= simulate(BUSY, seconds=2.0).columns.keys()
