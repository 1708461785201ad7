"""scripts/gpu_check.py: its commands are valid, no process is left behind, and a second call resumes."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastae.cli.main import cli
from fastae.config import TrainConfig
from scripts import gpu_check
from scripts.gpu_check import parts, run_part

from .commands import wait_until_ended


def test_a_part_that_takes_too_long_leaves_no_process_on_the_gpu(tmp_path):
    """Not even a child in a session of its own is left. The benchmarks start such children."""
    path = tmp_path / "log"
    with path.open("w") as log:
        ended = run_part(["sh", "-c", "setsid sleep 600 & echo $!; wait"], log, seconds=1)
    assert ended == "stopped after 1 s"
    (pid,) = path.read_text().split()
    wait_until_ended(pid)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_fastae_accepts_the_command_of_every_run_and_sweep(tmp_path, on_gpu):
    """Tests run one after the other on the card, and loaders use all cores."""
    commands = parts(tmp_path, on_gpu, images=None)
    assert {"resident", "dali", "sweep"} <= commands.keys()
    named = [name for command in commands.values() for name in command if name.startswith("tests/gpu/")]
    assert sorted(named) == sorted(map(str, Path("tests/gpu").glob("test_*.py")))
    for _, _, module, command, *options in commands.values():
        assert module != "pytest" or "--numprocesses=0" in (command, *options)
        if module == "fastae":
            context = cli.commands[command].make_context(command, options)
            names = TrainConfig.__dataclass_fields__
            TrainConfig(**{name: value for name, value in context.params.items() if name in names})
    for name in ("loaders", "endtoend", "decoders") if on_gpu else ():
        threads = commands[name].index("--threads") + 1
        assert commands[name][threads] == str(len(os.sched_getaffinity(0)))


def test_a_second_call_runs_only_the_parts_that_failed(tmp_path, monkeypatch):
    commands = {"one": ["true"], "two": ["test", "-e", str(tmp_path / "fixed")]}
    monkeypatch.setattr(gpu_check, "parts", lambda *_: commands)
    first = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path)])
    assert first.exit_code == 1 and "not done: two" in first.output
    (tmp_path / "fixed").touch()
    second = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path)])
    assert second.exit_code == 0 and "one" not in second.output and "two" in second.output
