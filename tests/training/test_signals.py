"""A run that is stopped by a signal: it finishes its step, saves, and prints how to resume it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fastae.errors import Stopped
from fastae.runs.folder import RunFolder
from fastae.runs.weights import finished_at
from fastae.sweep.plan import SweepConfig
from fastae.sweep.sweep import train_sweep
from fastae.training.resume import resume_run
from fastae.training.runner import train
from fastae.training.signals import StopSignals
from fastae.training.step.step import TrainingStep

from ..commands import NARROW, SMALL, curve, last_iteration, started, wait_for, wait_until
from ..helpers import at_iteration, small_config

RUN = [*SMALL, "--log-every", 1, "--gpu-sample-hz", 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_run_continues_from_there(face_folder, tmp_path, monkeypatch, number):
    run = tmp_path / "run"
    at_iteration(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped) as stopped:
        train(small_config(face_folder, run, log_every=1, iterations=100))
    assert stopped.value.exit_code == 128 + number
    iteration = last_iteration(run)
    assert iteration in (3, 4) and f"{number.name} at iteration {iteration}" in str(stopped.value)
    assert str(stopped.value).endswith(f"fastae train --resume {run}")
    resume_run(run, {"iterations": iteration + 1})
    assert [step for step, _ in curve(run)] == list(range(1, iteration + 2))


def test_a_closed_terminal_does_not_end_a_run_but_a_signal_does(face_folder, tmp_path):
    run = tmp_path / "run"
    with started(
        "train", "--data", face_folder, "--out", run, *RUN, "--checkpoint-every", 5, command=NARROW
    ) as process:
        wait_for(process, "2/100,000")
        process.stdout.close()  # every later line is a broken pipe
        wait_until((run / "checkpoints" / "0000010.safetensors").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 143
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("fastae: stopped by SIGTERM")


def test_a_second_signal_ends_the_process_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops:  # the first is sent again at the end
        signal.raise_signal(signal.SIGINT)
        assert stops.caught is signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_comes_at_the_last_iteration_finds_the_run_finished(face_folder, tmp_path, monkeypatch):
    at_iteration(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # sent again, when the run is done
        train(small_config(face_folder, tmp_path / "run", iterations=2))
    assert (tmp_path / "run" / "model.safetensors").exists()


AT_IMPORT = """
class Interrupt:
    def find_spec(name, *rest):
        if name == "fastae.cli.main":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
"""
TWICE = """
from fastae.cli import main
def command(**options):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
main.cli.main = command
"""


@pytest.mark.parametrize("code", [AT_IMPORT, TWICE], ids=["while fastae is imported", "twice"])
def test_ctrl_c_prints_no_traceback(code):
    program = f"import signal, sys\n{code}\nfrom fastae.__main__ import main\nmain()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


COMPILER = """#!/bin/sh
rm "$0.armed" 2>/dev/null && touch "$0.busy" && exec sleep 600
exec g++ "$@"
"""
"""g++, except that one call takes very long if the file NAME.armed exists, so that a signal interrupts it."""


def test_a_signal_to_the_process_group_while_the_compiler_runs_stops_the_run(face_folder, tmp_path):
    """Ctrl-C, timeout, scancel and systemd signal the compiler too, which dies first."""
    compiler, out = tmp_path / "compiler", tmp_path / "out"
    compiler.write_text(COMPILER)
    compiler.chmod(0o700)
    environment = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    options = ["--data", face_folder, "--out", out, *RUN, "--compile", "--loader", "dali"]
    with started("train", *options, command=NARROW, group=True, **environment) as process:
        wait_for(process, "run       ")
        compiler.with_name("compiler.armed").touch()
        busy = compiler.with_name("compiler.busy")
        wait_until(lambda: busy.exists() or process.poll() is not None, seconds=600)
        assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130, stderr
    (line,) = stderr.splitlines()
    assert "stopped by SIGINT" in line and line.endswith(f"fastae train --resume {out}")


def test_a_compiler_that_was_ended_by_a_signal_is_reported_as_a_stop(face_folder, tmp_path, monkeypatch):
    def killed(self, *inputs):
        signal.raise_signal(signal.SIGTERM)
        raise subprocess.CalledProcessError(-signal.SIGTERM, "gcc")  # as from Triton

    monkeypatch.setattr(TrainingStep, "_step", killed)
    run, sweep = tmp_path / "run", tmp_path / "sweep"
    with pytest.raises(Stopped) as stopped:
        train(small_config(face_folder, run))
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    line = str(stopped.value)
    assert "nothing was saved yet" in line and line.endswith(f"fastae train --resume {run}")
    with pytest.raises(Stopped, match=f"stopped by SIGTERM.*--out {sweep}, resumes it"):
        train_sweep(SweepConfig(small_config(face_folder)), sweep)
    monkeypatch.undo()
    assert resume_run(run, {}) == run and finished_at(RunFolder(run)) == 2


def test_a_signal_that_a_child_received_first_is_awaited():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops:
        assert stops.within(0) is None
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert stops.within(600) is signal.SIGINT
