"""scripts/gpu_check.py: what it starts, and that nothing of it stays behind."""

import os
import time
from pathlib import Path

from scripts.gpu_check import parts, run_part


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_takes_too_long_leaves_no_process_on_the_gpu(tmp_path):
    """Neither a child in a session of its own, as the benchmarks' are."""
    path = tmp_path / "log"
    with path.open("w") as log:
        ended = run_part(["sh", "-c", "setsid sleep 600 & echo $!; wait"], log, seconds=2)
    assert ended == "stopped after 2 s"
    (pid,) = path.read_text().split()
    for _ in range(1000):  # killed, it may take a moment to die
        if not alive(pid):
            return
        time.sleep(0.01)
    raise AssertionError("it still runs")


def test_a_parts_exit_code_is_told(tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert run_part(["sh", "-c", "exit 3"], log, seconds=60) == 3


def test_the_tests_do_not_share_the_card_and_loaders_get_all_cores(tmp_path):
    commands = parts(tmp_path, gpu=True, images=None)
    assert "--numprocesses=0" in commands["tests"]
    cores = str(len(os.sched_getaffinity(0)))
    for name in ("loaders", "endtoend", "sweep"):
        assert commands[name][commands[name].index("--threads") + 1] == cores
