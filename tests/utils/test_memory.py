"""How much memory there is, read from a made-up /proc and /sys/fs/cgroup."""

import pytest
import torch

from fastae.data import memory as device_memory
from fastae.tools import doctor
from fastae.utils import memory

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """22 GiB free of 24; a test adds the control groups."""

    def make(cgroup, groups):
        monkeypatch.setattr(memory, "ROOT", tmp_path)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(
            f"MemTotal:       {24 * GIB // 1024} kB\nMemAvailable:   {22 * GIB // 1024} kB\n"
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
    stat = f"anon 1\nfile 2\ninactive_anon 5\ninactive_file {inactive}\nactive_file 7\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def v1(limit, used=0, inactive=0):
    stat = f"cache 1\ninactive_file 3\ntotal_cache 1\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


MIB = 1 << 20
V1 = "4:memory:/docker/a1\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "groups", "free", "total"),
    [
        # A container of 900 MiB with a cgroup namespace: its own group is the root of what it sees.
        ("0::/\n", {".": v2(900 * MIB, 300 * MIB, 100 * MIB)}, 700 * MIB, 900 * MIB),
        # A systemd service on the machine itself: an ancestor allows less than the group.
        (
            "0::/a.slice/b.service\n",
            {"a.slice": v2(2 * GIB, GIB), "a.slice/b.service": v2(8 * GIB, GIB)},
            GIB,
            2 * GIB,
        ),
        ("0::/a.slice\n", {"a.slice": v2("max", 5 * GIB)}, 22 * GIB, 24 * GIB),
        ("0::/a.slice\n", {"a.slice": v2(100 * GIB)}, 22 * GIB, 24 * GIB),
        ("0::/a.slice\n", {"a.slice": v2(GIB, 2 * GIB)}, 0, GIB),
        # Version 1, whose files begin with the group's own path, or in a container at its root.
        (V1, {"memory/docker/a1": v1(GIB, 512 * MIB, 128 * MIB)}, 640 * MIB, GIB),
        (V1, {"memory": v1(GIB, 512 * MIB, 128 * MIB)}, 640 * MIB, GIB),
        ("4:memory:/docker/a1/sub\n", {"memory/sub": v1(UNLIMITED_V1.strip()), "memory": v1(GIB)}, GIB, GIB),
        (V1, {"memory/docker/a1": v1(UNLIMITED_V1.strip(), GIB)}, 22 * GIB, 24 * GIB),
        # Both mounted: the memory is version 1's.
        (V1, {"unified": {"cgroup.procs": ""}, "memory/docker/a1": v1(GIB)}, GIB, GIB),
        # What cannot be read limits nothing; a name that leads out of the mount is not followed.
        ("0::/a\n", {"a": {"memory.max": "12 what\n"}}, 22 * GIB, 24 * GIB),
        ("0::/../../a\n", {"../../a": v2(MIB)}, 22 * GIB, 24 * GIB),
        ("nonsense\n", {}, 22 * GIB, 24 * GIB),
        (None, {}, 22 * GIB, 24 * GIB),
    ],
)
def test_free_memory_is_what_the_control_groups_allow(machine, cgroup, groups, free, total):
    machine(cgroup, groups)
    assert (memory.free_bytes(), memory.total_bytes()) == (free, total)


def test_whoever_asks_for_free_memory_gets_the_control_groups(machine):
    machine("0::/\n", {".": v2(900 * MIB, 300 * MIB, 100 * MIB)})
    device = torch.device("cpu")
    assert (device_memory.free_bytes(device), device_memory.total_bytes(device)) == (700 * MIB, 900 * MIB)
    assert "0.7 GiB free of 0.9 GiB" in doctor.check_memory()[0]
