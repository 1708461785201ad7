"""A run that is told to stop: it finishes its step, saves, and says how to go on."""

import signal
import time

import pytest

from ..commands import SMALL, curve, fastae, last_state, started, wait_for

RUN = [*SMALL, "--log-every", 1, "--eval-every", 1000, "--gpu-sample-hz", 0]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_the_run_goes_on_behind_it(face_folder, tmp_path, number, code):
    run = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", run, *RUN) as process:
        wait_for(process, "3/100,000")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    iteration = last_state(run)["iteration"]
    (line,) = errors.splitlines()
    assert line == (
        f"fastae: stopped by {number.name} at iteration {iteration}, all is saved; "
        f"go on with: fastae train --resume {run}"
    )
    assert iteration >= 3
    result = fastae("train", "--resume", run, "--iterations", iteration + 2)
    assert result.returncode == 0, result.stderr
    assert [step for step, _ in curve(run)] == list(range(1, iteration + 3))


def test_a_second_signal_ends_at_once(face_folder, tmp_path):
    run = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", run, *RUN, "--signal-grace", 600) as process:
        wait_for(process, "3/100,000")
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_the_grace_is_trained_on_after_a_first_save(face_folder, tmp_path):
    run = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", run, *RUN, "--signal-grace", 2) as process:
        wait_for(process, "3/100,000")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    saved = sorted(int(path.stem) for path in (run / "checkpoints").glob("0*.pt"))
    assert len(saved) == 2 and saved[1] > saved[0] >= 3


def test_a_terminal_that_went_away_does_not_end_a_run(face_folder, tmp_path):
    run = tmp_path / "run"
    with started("train", "--data", face_folder, "--out", run, *RUN, "--iterations", 30) as process:
        wait_for(process, "2/30")
        process.stdout.close()  # every later line is a broken pipe
        assert process.wait(60) == 0
    assert last_state(run)["iteration"] == 30
