"""`fastae gpu` on a recorded machine: the view, its JSON, and another program under watch."""

import json
import os
import signal
import sys
import threading

import pynvml
import pytest

from fastae.errors import FastaeError
from fastae.monitor.command import gpu_command
from fastae.monitor.live import show_gpus
from fastae.monitor.program import watch_program

from .recorded_nvml import FALLS_OFF_THE_BUS, MIG, THROTTLED, Card, RecordedNvml


@pytest.fixture
def machine():
    return RecordedNvml(
        Card(THROTTLED), Card(MIG, uuid="GPU-2", index=1), Card(FALLS_OFF_THE_BUS[-1:], index=2)
    )


def test_once_is_a_row_a_gpu(machine, capsys):
    show_gpus(once=True, as_json=False, hz=10, library=machine)
    heading, hot, mig, lost = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["GPU", "SM", "%"]
    assert "600 of 700" in hot and "slowed down by its driver, too hot" in hot
    assert mig.count(" - ") >= 5 and "5 of 80" in mig
    assert "lost: NVML_ERROR_GPU_IS_LOST" in lost
    assert machine.opened == 0


def test_once_as_json(machine, capsys):
    show_gpus(once=True, as_json=True, hz=10, library=machine)
    hot, mig, _ = json.loads(capsys.readouterr().out)
    assert hot["power"] == 600 and hot["power_limit"] == 700 and hot["temperature"] == 88
    assert hot["not_offered"] == {} and len(hot["throttling"]) == 2
    assert mig["power"] is None and mig["not_offered"]["power"] == "NVML_ERROR_NOT_SUPPORTED"


def test_a_driver_without_a_gpu():
    with pytest.raises(FastaeError, match="shows no GPU"):
        show_gpus(once=True, as_json=False, hz=10, library=RecordedNvml())


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("print('its own output')", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_another_program_keeps_its_output_and_exit_code(machine, capfd, tmp_path, code, exit_code):
    out = tmp_path / "new" / "folder"
    assert watch_program([sys.executable, "-c", code], 50, out, machine) == exit_code
    stdout, stderr = capfd.readouterr()
    assert stdout == ("its own output\n" if exit_code == 0 else "")
    assert "verdict   " in stderr and "does not tell how long it waits for data" in stderr
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.csv", "gpu.png"}


def test_sigterm_is_passed_on(machine):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert watch_program(["sleep", "20"], 50, None, machine) == 128 + signal.SIGTERM


def test_a_program_that_cannot_start(machine):
    with pytest.raises(FastaeError, match="cannot start 'no-such-program'"):
        watch_program(["no-such-program"], 50, None, machine)
    assert machine.opened == 0


def test_no_gpu_visible_to_the_program(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(FastaeError, match="CUDA_VISIBLE_DEVICES names no GPU"):
        watch_program(["true"], 50, None, machine)


def test_without_a_driver_the_program_does_not_start(tmp_path):
    absent = RecordedNvml(absent=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(FastaeError, match="no NVIDIA driver was found"):
        watch_program(["touch", str(tmp_path / "started")], 10, None, absent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hz": 0.0}, "--gpu-sample-hz must be above 0"),
        ({"hz": float("nan")}, "--gpu-sample-hz must be above 0"),
        ({"command": ()}, "after -- comes a COMMAND"),
        ({"command": ("ls",), "once": True}, "after -- comes a COMMAND"),
        ({"as_json": True}, "--json needs a RUN, or --once"),
    ],
)
def test_options_that_do_not_belong_together(options, words):
    options = {"run": None, "command": None, "once": False, "as_json": False, "out": None, "hz": 10} | options
    with pytest.raises(FastaeError, match=words):
        gpu_command(options.pop("run"), options.pop("command"), **options)
