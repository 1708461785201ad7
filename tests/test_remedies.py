"""Error messages contain the remedy, and progress is shown in the unit that ends the run."""

import io
import re

import pytest

from fastae.training import progress
from fastae.training.progress import ProgressBar
from fastae.utils.console import HarmlessConsole, size

from .commands import SMALL, here, refuses


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_folder_without_the_option_data_is_refused_with_a_hint(face_folder, command):
    assert f"--data {face_folder}" in refuses(command, face_folder)
    assert "unexpected argument 'nonsense'" in refuses(command, "nonsense", "--lr", 1)


def test_resume_of_a_sweep_is_refused_with_a_hint_at_out(tmp_path):
    assert f"--out {tmp_path}" in refuses("sweep", "--resume", tmp_path)


RUN_COMMANDS = "train --resume .", "gpu .", "reconstruct . a.jpg --out x", "export . --format torch --out x"


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_commands_for_one_run_refuse_a_folder_of_runs(run, tmp_path, monkeypatch, command):
    run.rename(tmp_path / "pixel_mse")
    monkeypatch.chdir(tmp_path)
    message = refuses(*command.split())
    assert "is a folder of runs" in message and "pixel_mse" in message


def test_a_refused_resume_names_the_remedy_and_a_resumed_run_reports_its_first_and_last_error(run, capsys):
    assert "less than the 4 that are done" in refuses("train", "--resume", run, "--iterations", 3)
    message = refuses("train", "--resume", run, "--iterations", 9, "--data", "/nowhere")
    assert "there is no such folder" in message and "--data" in message
    here("train", "--resume", run, "--iterations", 6)
    summary = r"held-out loss_index [\d,]+ at iteration 0, [\d,]+ at iteration 6"
    assert re.search(summary, capsys.readouterr().out)


@pytest.mark.parametrize(("minutes", "shown"), [(None, "50/100"), (2.5, "50")])
def test_the_progress_bar_counts_to_the_iterations_or_minutes_that_end_the_run(monkeypatch, minutes, shown):
    """The bar disappears before the result is printed."""
    console = HarmlessConsole(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", console)
    bar = ProgressBar()
    with bar.begin(None if minutes else 100):
        bar.advance(50, 0.5)
        (task,) = bar._bar.tasks
        assert task.percentage == 50
        text = bar._bar.columns[0].render(task).plain
        assert text == shown
        bar.end()
        assert not bar._bar.live.is_started


def test_sizes_are_in_megabytes_or_gigabytes():
    assert [size(count) for count in (72e6, 999e6, 9.96e9)] == ["72 MB", "999 MB", "9.96 GB"]


def test_keep_0_leaves_only_the_weights_of_a_finished_run(face_folder, tmp_path):
    out = tmp_path / "run"
    options = ["--iterations", 3, "--checkpoint-every", 1, "--keep", 0]
    here("train", "--data", face_folder, "--out", out, *SMALL, *options)
    assert not list((out / "checkpoints").iterdir()) and (out / "model.safetensors").exists()
    assert "kept no checkpoint (--keep 0)" in refuses("train", "--resume", out, "--iterations", 9)
    assert here("reconstruct", out, face_folder, "--out", tmp_path / "pictures") == 0
