"""Reads the CPU time, memory and disk reads of real processes, and finds the processes of a program."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from fastae.monitor import host as module
from fastae.monitor.host import Family, HostReader, family
from fastae.monitor.recording import SAMPLED

from ..commands import wait_until


@pytest.fixture(autouse=True)
def _no_shortest(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST_INTERVAL", 0.01)


def test_the_cpu_time_memory_and_disk_reads_of_a_process_are_read():
    reader, end = HostReader(lambda: [os.getpid()]), time.process_time() + 0.15
    while time.process_time() < end:
        pass
    values = reader.read()
    known = {name for name in SAMPLED if name.startswith("host/")}
    assert known - {"host/cpu_wait"} <= set(values) <= known
    assert 0 < values["host/cpu"] <= os.cpu_count() and values["host/memory"] > 0.01


def memory(pids):
    reader = HostReader(lambda: pids)
    time.sleep(0.02)
    return reader.read()["host/memory"]


def test_a_process_that_starts_later_is_counted(monkeypatch):
    """As the workers of a loader, which starts them when the loop begins."""
    monkeypatch.setattr(module, "FAMILY_SECONDS", 0)
    reader = HostReader(Family(os.getpid()))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as worker:
        try:
            wait_until(lambda: cpu_seconds(worker) > 0)
            began = time.monotonic()
            reader.read()
            before = cpu_seconds(worker)
            wait_until(lambda: cpu_seconds(worker) > before + 0.3)
            assert reader.read()["host/cpu"] > 0.2 / (time.monotonic() - began)
        finally:
            worker.kill()


def test_if_the_processes_are_hidden_the_program_itself_is_counted(monkeypatch):
    def hidden(pid):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(module, "family", hidden)
    assert Family(17)() == (17,)


def cpu_seconds(process):
    return psutil.Process(process.pid).cpu_times().user


def test_several_processes_are_summed():
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        wait_until(lambda: _sleeps(family(parent.pid)[-1]))
        pids = family(parent.pid)
        sums = [memory(each) for each in (pids[:1], pids[1:], pids)]
    finally:
        os.killpg(parent.pid, 9)
        parent.wait()
    assert pids[0] == parent.pid and len(pids) == 2 and sums[2] == pytest.approx(sums[0] + sums[1], rel=0.2)


def _sleeps(pid):
    """Whether `sleep` has been loaded, and its memory is final. Until then, it is a copy of the shell."""
    process = psutil.Process(pid)
    return process.name() == "sleep" and process.status() == psutil.STATUS_SLEEPING


def test_a_process_that_is_gone_has_no_figures():
    ended = subprocess.Popen(["true"])
    ended.wait()
    reader = HostReader(lambda: [ended.pid])
    time.sleep(0.02)
    assert set(reader.read()) == {"host/machine_cpu"}
