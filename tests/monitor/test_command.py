"""`fastae gpu -- COMMAND` beside real programs, on recorded machines."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pynvml
import pytest

from fastae.errors import FastaeError
from fastae.monitor import command as module
from fastae.monitor.command import gpu_command, monitor_program
from fastae.monitor.files import read_report
from fastae.monitor.host import HostReader
from fastae.monitor.recording import Absence
from fastae.monitor.summary import Verdict
from fastae.monitor.text import heading

from .conftest import StubHost
from .recorded_nvml import (
    BUSY,
    GIB,
    IDLE,
    LAUNCH_BOUND,
    NOT_SUPPORTED,
    SLICE,
    RecordedNvml,
    machine_of,
    mig_machine,
)

ON_IT = {"processes": ((1, GIB),)}
HELD, HELD_SLICE = [LAUNCH_BOUND[0].but(**ON_IT)], [SLICE[0].but(used=7 * GIB, **ON_IT)]


@pytest.fixture(autouse=True)
def whose(monkeypatch):
    """Whose process 1 is, and whether process ids are known."""

    def be(answer, sees_all=True):
        monkeypatch.setattr(HostReader, "is_ours", lambda self, pid: answer)
        monkeypatch.setattr(module, "sees_all_processes", lambda: sees_all)

    be(True)
    return be


def report_on(library, tmp_path, command=("true",)):
    assert monitor_program(command, 50, tmp_path, library) == 0
    return read_report(tmp_path)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("print('its own output')", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_a_program_keeps_its_output_and_exit_code(capfd, tmp_path, code, exit_code):
    out, library = tmp_path / "new" / "folder", machine_of(HELD)
    assert monitor_program([sys.executable, "-c", code], 50, out, library) == exit_code
    stdout, stderr = capfd.readouterr()
    assert stdout == ("its own output\n" if exit_code == 0 else "")
    assert "\nverdict   " in stderr and library.opened == 0
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.csv", "gpu.png"}
    assert gpu_command(out, None, as_json=True, out=None, hz=10) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((out / "gpu.json").read_text())


def test_only_the_gpus_that_the_program_holds_are_reported(tmp_path):
    report = report_on(machine_of(BUSY, HELD), tmp_path)
    assert [gpu.record.prefix for gpu in report.summary.gpus] == ["gpu1"]
    assert report.judged.mean("gpu_busy") == 55, "the busy one is a neighbour's"
    assert "GPU 1" in heading(report), "which of the machine's it is"
    assert "gpu0/" not in (tmp_path / "gpu.csv").read_text()


def test_a_program_is_judged_from_when_it_first_used_the_gpu(simulate):
    """Not by the seconds in which it imported and read files."""
    states = [*IDLE * 100, *(BUSY[0].but(**ON_IT) for _ in range(2))]
    report, _ = module._report_on(simulate(states, host=StubHost(is_ours=lambda pid: True)).recording(), "x")
    assert report.diagnosis.verdict is Verdict.GPU_BOUND and report.judged.mean("gpu_busy") == 98


def test_a_program_on_no_gpu_is_not_judged_by_its_neighbours(tmp_path, whose):
    whose(False)
    report = report_on(machine_of(HELD), tmp_path)
    assert report.absence is Absence.NOT_USED and report.summary.gpus == ()


def test_slices_of_one_board_are_kept_apart(tmp_path):
    library = mig_machine()
    library.cards[2].states = HELD_SLICE
    (gpu,) = report_on(library, tmp_path).summary.gpus
    assert gpu.record.gpu.uuid == "MIG-bbbb" and gpu.mean("memory") == 7.0


def test_what_nvml_does_not_tell_of_processes_is_not_known(tmp_path):
    report = report_on(machine_of([BUSY[0].but(processes=NOT_SUPPORTED)]), tmp_path)
    assert report.absence is Absence.NOT_ATTRIBUTED and report.diagnosis.verdict is Verdict.GPU_BOUND


def test_a_gpu_has_the_number_that_nvidia_smi_gives_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "GPU 1" in heading(report_on(machine_of(BUSY, HELD), tmp_path))


@pytest.mark.parametrize(("has_card", "verdict"), [(True, Verdict.UNKNOWN), (False, Verdict.CPU_IDLE)])
def test_a_program_on_a_card_without_nvml_is_not_judged_by_its_cpu(tmp_path, monkeypatch, has_card, verdict):
    monkeypatch.setattr(module, "has_nvidia_card", lambda: has_card)
    monkeypatch.setattr("fastae.monitor.host.PERIOD", 0.1)
    library = RecordedNvml(absent=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert report_on(library, tmp_path, ["sleep", "0.5"]).diagnosis.verdict is verdict


@pytest.mark.parametrize(("answer", "first"), [(None, HELD), (False, BUSY)])
def test_a_container_hides_whose_processes_they_are(tmp_path, whose, answer, first):
    whose(answer, sees_all=False)
    report = report_on(machine_of(first, BUSY), tmp_path)
    assert report.absence is Absence.NOT_ATTRIBUTED and len(report.summary.gpus) == 2
    assert report.diagnosis.verdict is Verdict.UNKNOWN and report.diagnosis.gpu is None
    assert report.summary.kwh is None, "it would be the neighbours', too"
    alone = report_on(machine_of(BUSY), tmp_path)
    assert alone.diagnosis.verdict is Verdict.GPU_BOUND, "there is but one GPU that it can be"


@pytest.mark.parametrize(
    ("code", "visible", "absence"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "0", Absence.NO_NVML),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "0", Absence.NVML_FAILED),
        (None, "", Absence.NONE_VISIBLE),
    ],
)
def test_without_driver_or_gpu_the_host_is_sampled(tmp_path, monkeypatch, code, visible, absence):
    monkeypatch.setattr("fastae.monitor.host.PERIOD", 0.1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    report = report_on(machine_of(BUSY, absent=code), tmp_path, ["sleep", "0.3"])
    assert report.absence is absence and {"cpu", "memory"} <= report.summary.host.keys()


@pytest.mark.parametrize("number", module.FORWARDED)
def test_signals_are_forwarded(number):
    before = signal.getsignal(number)
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    assert monitor_program(["sleep", "20"], 50, None, machine_of(HELD)) == 128 + number
    assert signal.getsignal(number) == before


def test_a_signal_that_comes_before_the_program_is_known_reaches_it(monkeypatch):
    def started(command, real=subprocess.Popen):
        process = real(command)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(module.subprocess, "Popen", started)
    assert monitor_program(["sleep", "20"], 50, None, machine_of(HELD)) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_report_is_made_changes_no_exit_code(monkeypatch, number):
    monkeypatch.setattr(module, "show_report", lambda *them: signal.raise_signal(number))
    assert monitor_program(["sh", "-c", "exit 4"], 50, None, machine_of(HELD)) == 4


@pytest.mark.parametrize(("number", "handler"), [(signal.SIGHUP, signal.SIG_IGN), (signal.SIGINT, None)])
def test_an_ignored_signal_and_ctrl_c_are_not(number, handler):
    """As under nohup; and the terminal sends Ctrl-C to both."""
    before = signal.getsignal(number)
    signal.signal(number, handler or before)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        assert monitor_program(["sleep", "0.3"], 50, None, machine_of(HELD)) == 0
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("broken", ["write_report", "show_report", "Poller", "visible_gpus"])
def test_whatever_happens_to_the_report_the_exit_code_is_the_programs(monkeypatch, tmp_path, capfd, broken):
    def breaks(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, broken, breaks)
    assert monitor_program(["sh", "-c", "exit 5"], 50, tmp_path, machine_of(HELD)) == 5
    assert "No space left on device" in capfd.readouterr().err


def test_what_cannot_begin_is_refused_before_the_program_starts(tmp_path):
    with pytest.raises(FastaeError, match="no-such-program"):
        monitor_program(["no-such-program"], 50, None, RecordedNvml())
    (tmp_path / "file").write_text("")
    with pytest.raises(FastaeError, match="--out"):
        monitor_program(["touch", str(tmp_path / "started")], 10, tmp_path / "file" / "out", RecordedNvml())
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hz": 0.0}, "--gpu-sample-hz"),
        ({"hz": float("nan")}, "--gpu-sample-hz"),
        ({"command": ()}, "COMMAND"),
        ({"command": ("ls",), "as_json": True}, "COMMAND"),
        ({}, "nvitop"),
    ],
)
def test_options_that_do_not_belong_together(options, words):
    options = {"run": None, "command": None, "as_json": False, "out": None, "hz": 10} | options
    with pytest.raises(FastaeError, match=words):
        gpu_command(options.pop("run"), options.pop("command"), **options)


def test_the_command_line_of_a_program_is_its_own():
    """Options after -- are the program's, and its exit code is that of fastae; without a driver, too."""
    result = subprocess.run(
        [sys.executable, "-m", "fastae", "gpu", "--", "sh", "-c", "echo $1; exit 3", "--", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (3, "--json\n") and "verdict" in result.stderr
