"""Memory and cores that a process may use, read from a simulated /proc and /sys/fs/cgroup."""

import os

import psutil
import pytest
import torch

from fastae.data.loaders import decode
from fastae.device import doctor, memory
from fastae.utils import limits

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that simulates a machine with 22 GiB free of 24, and a test's control groups."""

    def make(cgroup, groups):
        monkeypatch.setattr(limits, "ROOT", tmp_path)
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(
            f"MemTotal:       {24 * GIB // 1024} kB\nMemFree: 1 kB\nBuffers: 0 kB\nCached: 0 kB\n"
            f"MemAvailable:   {22 * GIB // 1024} kB\nActive: 0 kB\nInactive: 0 kB\nShmem: 0 kB\nSlab: 0 kB\n"
        )
        if cgroup is not None:
            (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for group, files in groups.items():
            folder = tmp_path / "sys/fs/cgroup" / group
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).write_text(content)

    return make


def v2(limit, used=0, inactive=0):
    stat = f"anon 1\ninactive_anon 5\ninactive_file {inactive}\nactive_file 7\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def v1(limit, used=0, inactive=0):
    stat = f"inactive_file 3\ntotal_inactive_file {inactive}\n"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return dict(zip(names, (f"{limit}\n", f"{used}\n", stat), strict=True))


MIB = 1 << 20
SERVICE = {"a.slice": v2(2 * GIB, GIB), "a.slice/b.service": v2(8 * GIB, GIB)}
JOB = {"memory/job": v1(2 * GIB, GIB, 512 * MIB), "memory": v1(2**63 - 4096, 5 * GIB)}


@pytest.mark.parametrize(
    ("cgroup", "groups", "free", "total"),
    [
        # A container of 900 MiB with a cgroup namespace: its own group is the root of what it sees.
        ("0::/\n", {".": v2(900 * MIB, 300 * MIB, 100 * MIB)}, 700 * MIB, 900 * MIB),
        # A systemd service on the machine itself: an ancestor allows less than the group.
        ("0::/a.slice/b.service\n", SERVICE, GIB, 2 * GIB),
        ("0::/a.slice\n", {"a.slice": v2("max", 5 * GIB)}, 22 * GIB, 24 * GIB),
        ("0::/a.slice\n", {"a.slice": v2(100 * GIB)}, 22 * GIB, 24 * GIB),
        ("0::/a.slice\n", {"a.slice": v2(GIB, 2 * GIB)}, 0, GIB),
        # Version 1, as in RHEL 8: each controller has a tree of its own, and a huge number means no limit.
        ("9:memory:/job\n2:cpu,cpuacct:/job\n0::/\n", JOB, GIB + 512 * MIB, 2 * GIB),
        ("9:memory:/docker/a\n", {"memory": v1(2 * GIB, GIB)}, GIB, 2 * GIB),
        # Unreadable files set no limit; a group's path that leads out of the mount is not followed.
        ("0::/a\n", {"a": {"memory.max": "12 what\n"}}, 22 * GIB, 24 * GIB),
        ("0::/../../a\n", {"../../a": v2(MIB)}, 22 * GIB, 24 * GIB),
        ("nonsense\n", {}, 22 * GIB, 24 * GIB),
        (None, {}, 22 * GIB, 24 * GIB),
    ],
)
def test_free_memory_is_what_the_control_groups_allow(machine, cgroup, groups, free, total):
    machine(cgroup, groups)
    assert (limits.free_bytes(), limits.total_bytes()) == (free, total)


def test_every_caller_gets_the_free_memory_of_the_control_groups(machine):
    machine("0::/\n", {".": v2(900 * MIB, 300 * MIB, 100 * MIB)})
    cpu = torch.device("cpu")
    assert (memory.free_memory(cpu), memory.total_memory(cpu)) == (700 * MIB, 900 * MIB)
    assert "0.7 GiB free of 0.9 GiB" in doctor.check_memory()[0]


def quota(limit):
    return {"cpu.cfs_quota_us": f"{limit}\n", "cpu.cfs_period_us": "100000\n"}


ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cgroup", "groups", "cores"),
    [
        ("0::/job/step\n", {"job/step": {"cpu.max": "max 1000"}, "job": {"cpu.max": "500 1000"}}, 0.5),
        ("1:name=systemd:/x\n0::/\n", {".": {"cpu.max": "250 1000"}}, 0.25),
        ("0::/\n", {".": {"cpu.max": "max 100000"}}, ALL),
        ("4:cpu:/a\n", {}, ALL),
        ("4:cpu,cpuacct:/job/step\n", {"cpu/job": quota(50_000), "cpu/job/step": quota(-1)}, 0.5),
    ],
)
def test_quotas_limit_the_usable_cores(machine, cgroup, groups, cores):
    machine(cgroup, groups)
    assert limits.usable_cores() == cores
    assert decode.default_threads(torch.device("cpu")) == min(decode.MOST_THREADS, max(1, int(cores)))


def test_the_ranks_of_a_machine_share_its_cores(machine, monkeypatch):
    machine("0::/\n", {})
    monkeypatch.setattr("fastae.utils.ranks.usable_cores", lambda: 24.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decode.default_threads(torch.device("cuda")) == 6 - 2


def test_the_two_threads_of_a_core_count_as_one_core(machine, monkeypatch, tmp_path):
    """The machine has four CPUs on two cores. This process may use three, and its quota is two and a half."""
    machine("0::/\n", {".": {"cpu.max": "2500 1000"}})
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert limits.count_cores() == (2.5, 2, 2)
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: {0, 2})
    assert limits.count_cores() == (2, 1, 2)
