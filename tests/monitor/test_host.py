"""CPU, memory and disk of real processes, and which processes belong to a program."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from fastae.monitor import host as module
from fastae.monitor.host import HostReader, family
from fastae.monitor.recording import METRICS


@pytest.fixture(autouse=True)
def _no_shortest(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 0.01)


@contextmanager
def parent_of_one():
    """A process with a child, which waits; kills both."""
    child = "print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        parent.stdout.readline()  # the child runs
        yield parent.pid
    finally:
        for member in family(parent.pid):
            os.kill(member, 9)
        parent.wait()


def test_work_memory_and_nothing_else():
    reader, end = HostReader([os.getpid()]), time.process_time() + 0.15
    while time.process_time() < end:
        pass
    values = reader.read()
    assert set(values) == {name for name in METRICS if name.startswith("host/")}
    assert 0 < values["host/cpu"] <= os.cpu_count() and values["host/memory"] > 0.01


def test_several_processes_are_summed():
    with parent_of_one() as pid:
        parent, child = family(pid)
        time.sleep(0.02)
        memory = [HostReader(pids)._read_totals()["memory"] for pids in ([parent], [child], [parent, child])]
        assert parent == pid and memory[2] == pytest.approx(memory[0] + memory[1], rel=0.2)


def test_a_process_that_is_gone_has_no_figures():
    ended = subprocess.Popen(["true"])
    ended.wait()
    reader = HostReader([ended.pid])
    time.sleep(0.02)
    assert set(reader.read()) == {"host/machine_cpu"}
