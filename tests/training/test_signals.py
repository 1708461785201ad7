"""A run that is stopped by a signal: it finishes its step, saves, and prints how to resume it."""

import os
import signal
import time

import pytest

from fastae.errors import Stopped
from fastae.training.resume import resume_run
from fastae.training.runner import train
from fastae.training.signals import StopSignals

from ..commands import SMALL, curve, last_state, started, wait_for
from ..conftest import at_iteration, small_config

RUN = [*SMALL, "--log-every", 1, "--gpu-sample-hz", 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_run_continues_from_there(face_folder, tmp_path, monkeypatch, number):
    run = tmp_path / "run"
    at_iteration(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped) as stopped:
        train(small_config(face_folder, run, log_every=1, iterations=100))
    assert stopped.value.exit_code == 128 + number
    iteration = last_state(run)["iteration"]
    assert iteration in (3, 4) and f"{number.name} at iteration {iteration}" in str(stopped.value)
    assert str(stopped.value).endswith(f"fastae train --resume {run}")
    resume_run(run, {"iterations": iteration + 1})
    assert [step for step, _ in curve(run)] == list(range(1, iteration + 2))


def saved(run, iteration, process):
    """Returns when the process has saved this iteration."""
    while not (run / "checkpoints" / f"{iteration:07d}.pt").exists():
        assert process.poll() is None
        time.sleep(0.1)


def test_a_terminal_that_went_away_does_not_end_a_run_and_a_signal_does(face_folder, tmp_path):
    run = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", run, *RUN, "--checkpoint-every", 5) as process:
        wait_for(process, "2/100,000")
        process.stdout.close()  # every later line is a broken pipe
        saved(run, 10, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 143
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("fastae: stopped by SIGTERM")


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops:  # the first is sent again, when it is over
        signal.raise_signal(signal.SIGINT)
        assert stops.caught is signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_comes_at_the_last_iteration_finds_the_run_finished(face_folder, tmp_path, monkeypatch):
    at_iteration(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # sent again, when the run is done
        train(small_config(face_folder, tmp_path / "run", iterations=2))
    assert (tmp_path / "run" / "model.safetensors").exists()
