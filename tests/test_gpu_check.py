"""scripts/gpu_check.py: its commands are valid, no process is left behind, and a second call resumes."""

import itertools
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastae.cli.main import cli
from fastae.config import TrainConfig
from fastae.utils.limits import usable_cores
from scripts import gpu_check
from scripts.gpu_check import Part, memory_fault, memory_growth, parts, run_part

from .commands import wait_until_ended
from .gpu import test_resume


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
    made = parts(tmp_path, on_gpu, images=None)
    assert {"resident", "dali", "sweep", "sweep-host"} <= made.keys()
    for _, _, module, command, *options in [part.command for part in made.values()]:
        assert module != "pytest" or "--numprocesses=0" in (command, *options)
        if module == "fastae":
            context = cli.commands[command].make_context(command, options)
            names = TrainConfig.__dataclass_fields__
            TrainConfig(**{name: value for name, value in context.params.items() if name in names})
    for name in ("loaders", "endtoend", "decoders") if on_gpu else ():
        command = made[name].command
        assert float(command[command.index("--threads") + 1]) >= usable_cores()


def test_the_parts_run_each_test_of_a_gpu_once(tmp_path):
    commands = [part.command for part in parts(tmp_path, on_gpu=True, images=None).values()]
    chosen = [command[command.index("pytest") + 1 :] for command in commands if "pytest" in command]
    files = sorted({name for options in chosen for name in options if name.startswith("tests/gpu/")})
    assert files == sorted(map(str, Path("tests/gpu").glob("test_*.py")))
    cases = [options[-1] for options in chosen if "-k" in options]
    ids = [
        mark.kwargs.get("ids") or mark.args[1]
        for mark in test_resume.test_a_killed_run_ends_as_one_that_was_not.pytestmark
    ]
    assert sorted(cases) == sorted("-".join(case) for case in itertools.product(*ids))


def test_a_part_that_compiles_has_more_time_on_fewer_cores():
    assert Part([], compiles=0).seconds(2) == Part([], compiles=0).seconds(16) < Part([]).seconds(16)
    assert Part([], compiles=2).seconds(2) > Part([], compiles=2).seconds(4)


def gpu_csv(folder, used):
    """Writes the samples of a run that uses so many GiB: half of them in the evaluation before."""
    lines = ["time [s],phase,gpu/memory [GiB]", *(f"{i},eval,{i}" for i in range(len(used)))]
    lines += [f"{len(used) + i},train,{value}" for i, value in enumerate(used)]
    (folder / "gpu.csv").write_text("\n".join([*lines, ""]))


def test_the_memory_of_the_long_run_must_not_grow(tmp_path):
    gpu_csv(tmp_path, [1.5, 2.0, 2.0, 2.0, *[3.0, 2.0] * 8])
    assert memory_growth(tmp_path) == 0 and not memory_fault(tmp_path)
    gpu_csv(tmp_path, [2 + i / 100 for i in range(20)])
    assert memory_fault(tmp_path)
    assert parts(tmp_path, on_gpu=True, images=None)["resident"].fault_of is memory_fault


def test_a_second_call_runs_only_the_parts_that_failed(tmp_path, monkeypatch):
    made = {"one": Part(["true"]), "two": Part(["test", "-e", str(tmp_path / "fixed")])}
    monkeypatch.setattr(gpu_check, "parts", lambda *_: made)
    first = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path)])
    assert first.exit_code == 1 and "not done: two" in first.output
    (tmp_path / "fixed").touch()
    second = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path)])
    assert second.exit_code == 0 and "one" not in second.output and "two" in second.output
