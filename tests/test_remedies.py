"""Error messages contain the remedy, and progress is shown in the unit that ends the run."""

import os
import pty
import re
import subprocess
from contextlib import suppress

import pytest

from fastae.training.clock import Window
from fastae.training.observers.display import Display
from fastae.utils.console import size

from .commands import NARROW, SMALL, here, refuses
from .helpers import small_config


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_folder_without_the_option_data_is_refused_with_a_hint(face_folder, command):
    assert f"--data {face_folder}" in refuses(command, face_folder)
    assert "unexpected argument 'nonsense'" in refuses(command, "nonsense", "--lr", 1)


RUN_COMMANDS = "train --resume .", "gpu .", "reconstruct . a.jpg --out x", "export . --out x"


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


ERASED_LINE = "\x1b[1A\x1b[2K"
"""Moves a terminal's cursor one line up, and erases that line."""


def on_a_terminal(*arguments):
    """Runs a fastae command on a terminal of its own; returns what it shows."""
    ours, its = pty.openpty()
    options = {"stdout": its, "env": os.environ | {"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}}
    with subprocess.Popen([*NARROW, *map(str, arguments)], **options), os.fdopen(ours, "rb") as screen:
        os.close(its)
        shown = b""
        with suppress(OSError):  # Linux's end of a terminal whose process has ended
            while part := screen.read1():
                shown += part
    return shown.decode()


def test_the_bar_counts_to_the_iterations_that_end_the_run(face_folder, tmp_path):
    run = ["--data", face_folder, "--out", tmp_path / "run", *SMALL, "--iterations", 3]
    *_, bar, result = on_a_terminal("train", *run).split(ERASED_LINE)
    assert re.findall(r"([\d/]+) ━", bar)[-1] == "3/3"
    assert "━" not in result and "at iteration 0" in result


@pytest.mark.parametrize(("end", "count"), [({"iterations": 300}, " 20/300"), ({"minutes": 9}, "     20")])
def test_a_log_step_names_the_iterations_if_they_end_the_run(face_folder, capsys, end, count):
    display = Display(small_config(face_folder, **end), start=0, on_cpu=True, bar=False)
    figures = {"losses": [0.5], "loss": 0.5, "loss_index": 1e5, "gradient_norm": 1.0}
    display.window(Window(4, 1.0, 0.0, 1.0, 1.0, 0.0, iteration=20, **figures))
    assert capsys.readouterr().out.startswith(f"{count}  loss 0.5")


def test_sizes_are_in_megabytes_or_gigabytes():
    assert [size(count) for count in (72e6, 999e6, 9.96e9)] == ["72 MB", "999 MB", "9.96 GB"]


def test_keep_0_leaves_only_the_weights_of_a_finished_run(face_folder, tmp_path):
    out = tmp_path / "run"
    options = ["--iterations", 3, "--checkpoint-every", 1, "--keep", 0]
    here("train", "--data", face_folder, "--out", out, *SMALL, *options)
    assert not list((out / "checkpoints").iterdir()) and (out / "model.safetensors").exists()
    assert "kept no checkpoint (--keep 0)" in refuses("train", "--resume", out, "--iterations", 9)
    assert here("reconstruct", out, face_folder, "--out", tmp_path / "pictures") == 0
