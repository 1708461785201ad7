"""CPU, memory and disk of real processes, and which processes belong to a program."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from fastae.monitor import host as module
from fastae.monitor.host import COLUMNS, HostReader, family

BURN = "import time; t = time.process_time()\nwhile time.process_time() - t < {}: pass\n"


@pytest.fixture(autouse=True)
def _no_shortest(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 0.01)


@contextmanager
def parent_of(child):
    """A process whose child runs this code and then waits; kills both."""
    child += "print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        parent.stdout.readline()  # the child has done its work
        yield parent.pid
    finally:
        for member in family(parent.pid):
            os.kill(member, 9)
        parent.wait()


def test_work_memory_and_nothing_else():
    reader, end = HostReader(os.getpid()), time.process_time() + 0.15
    while time.process_time() < end:
        pass
    values = reader.read()
    assert set(values) == set(COLUMNS)
    assert 0 < values["host/cpu"] <= os.cpu_count() and values["host/memory"] > 0.01


def test_a_child_counts_from_when_it_is_found_and_is_the_programs():
    """It has worked for 0.4 s before: that is no use of the CPU in the second in which it is found."""
    with parent_of(BURN.format(0.4)) as pid:
        reader = HostReader(pid, children=True)
        time.sleep(0.05)
        values = reader.read()
        assert values["host/cpu"] < 1.0 and values["host/memory"] > 0.01
        parent, child = family(pid)
        assert reader.is_ours(parent) and reader.is_ours(child)
        assert reader.is_ours(os.getpid()) is False
        assert reader.is_ours(4_000_001) is None, "not a process of this namespace"


def test_a_process_that_is_gone_has_no_figures():
    ended = subprocess.Popen(["true"])
    ended.wait()
    reader = HostReader(ended.pid)
    time.sleep(0.02)
    assert set(reader.read()) == {"host/machine_cpu"}
