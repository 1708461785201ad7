"""The sampler itself: its cost, its memory, its clock; the host's half; TensorBoard's means."""

import os
import subprocess
import sys
import time

import numpy as np

from fastae.monitor import poller as module
from fastae.monitor.host import HOST_METRICS, HostReader, family
from fastae.monitor.poller import COMPILE, TRAIN, Poller
from fastae.monitor.samples import Samples

from .recorded_nvml import BUSY


def test_a_full_series_is_thinned_and_stays_even():
    series = Samples(2, capacity=8)
    for number in range(1000):
        series.add((number, -number))
        assert len(series.rows()) <= 8
    numbers = series.rows()[:, 0]
    assert numbers[0] == 0 and len(numbers) > 4 and len(set(np.diff(numbers))) == 1
    assert np.array_equal(series.rows()[:, 1], -numbers)


def test_it_costs_less_than_half_a_percent_of_a_core(record, monkeypatch):
    """At its default rate; without the free start, which would hide it in a test this short."""
    monkeypatch.setattr(module, "FREE_START", 0.0)
    recording = record(BUSY, seconds=3, hz=10)
    assert recording.sampler_share < 0.0055  # one reading more than the budget had left
    assert recording.samples >= 8


def test_a_rate_beyond_the_budget_is_lowered(record, monkeypatch):
    monkeypatch.setattr(module, "FREE_START", 0.0)
    recording = record(BUSY, seconds=0.5, hz=1000)
    assert recording.samples < 100
    assert recording.sampler_share < 0.01


def test_samples_are_on_the_grid(record):
    times = record(BUSY, seconds=0.5, hz=20).times[1:-1]
    assert np.abs(times * 20 - np.round(times * 20)).max() < 0.5
    assert 7 <= len(times) <= 11


def test_a_rate_while_compiling_does_not_stand_for_training():
    poller = Poller([], HostReader(os.getpid()), hz=50)
    poller.enter(COMPILE)
    poller.start()
    poller.record(64, 20.0, 0.0)
    time.sleep(0.06)
    poller.enter(TRAIN)
    time.sleep(0.06)
    poller.record(6400, 2.0, 0.25)
    time.sleep(0.06)
    poller.stop()
    recording = poller.recording()
    rates = recording.column("loop/images_per_second")
    training = np.array(recording.phases) == TRAIN
    assert set(rates[~training & ~np.isnan(rates)]) == {3.2}
    assert set(rates[training & ~np.isnan(rates)]) == {3200}
    assert recording.progress[TRAIN].waited == 0.5


def test_means_since_the_last_call():
    poller = Poller([], HostReader(os.getpid()), hz=50)
    poller.start()
    time.sleep(0.05)
    poller.stop()
    means = poller.means()
    assert set(means) == {f"host/{metric.name}" for metric in HOST_METRICS}
    assert means["host/memory"] > 0.01
    assert poller.means() == {}


def test_the_host_reader_sees_work_memory_and_nothing_else():
    reader = HostReader(os.getpid())
    end = time.process_time() + 0.15
    while time.process_time() < end:
        pass
    values = dict(zip([metric.name for metric in HOST_METRICS], reader.read(), strict=True))
    assert 0.2 < values["cpu"] < 1.5 and values["memory"] > 0.01 and values["disk_read"] >= 0
    assert reader.not_offered == {}


def test_the_host_reader_follows_children():
    code = "import time, subprocess, sys; subprocess.run(['sleep', '5'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 5
        while len(family(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        members = family(parent.pid)
        assert len(members) == 2
    finally:
        for member in members:
            os.kill(member, 9)
        parent.wait()


def test_a_process_that_is_gone_has_no_figures():
    ended = subprocess.Popen(["true"])
    ended.wait()
    reader = HostReader(ended.pid)
    cores, machine, memory, disk = reader.read()
    assert machine >= 0 and all(value != value for value in (cores, memory, disk))
    assert set(reader.not_offered) == {"cpu", "memory", "disk_read"}
