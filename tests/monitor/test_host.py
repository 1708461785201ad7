"""CPU, memory and disk of real processes, and which processes belong to a program."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from fastae.monitor import host as module
from fastae.monitor.host import COLUMNS, HostReader, cpu_quota, family, usable_cores

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


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_work_memory_and_nothing_else():
    reader = HostReader(os.getpid())
    busy(0.15)
    values = reader.read()
    assert set(values) == set(COLUMNS)
    assert 0.1 < values["host/cpu"] <= os.cpu_count() and values["host/memory"] > 0.01
    assert reader.record() == {}


def test_a_child_counts_from_when_it_is_found():
    """It has worked for 0.4 s before: that is no use of the CPU in the second in which it is found."""
    with parent_of(BURN.format(0.4)) as pid:
        reader = HostReader(pid, children=True)
        time.sleep(0.05)
        values = reader.read()
        assert len(reader._members) == 2
        assert values["host/cpu"] < 1.0 and values["host/memory"] > 0.01


def test_whose_process_it_is():
    with parent_of("") as pid:
        parent, child = family(pid)
        reader = HostReader(pid)
        assert reader.is_ours(parent) and reader.is_ours(child)
        assert reader.is_ours(os.getpid()) is False
        assert reader.is_ours(4_000_001) is None, "not a process of this namespace"


def test_a_process_that_is_gone_has_no_figures():
    ended = subprocess.Popen(["true"])
    ended.wait()
    reader = HostReader(ended.pid)
    time.sleep(0.02)
    assert set(reader.read()) == {"host/machine_cpu"}
    assert set(reader.record()) == {"cpu", "memory", "disk_read"}


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {}, None),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quotas_of_control_groups(tmp_path, groups, files, cores):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == cores


def test_a_quota_limits_the_usable_cores(monkeypatch):
    monkeypatch.setattr(module, "cpu_quota", lambda: 0.5)
    assert usable_cores() == 0.5
