"""The command line as a user meets it: help at once, and each mistake one line, exit code 2, no trace."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.losses import LOSSES

from .commands import SMALL, fastae, here


def refuses(*arguments):
    """The one line in which it refuses, in this process: what is printed of it, `refused` shows."""
    with pytest.raises(FastaeError) as caught:
        here(*arguments)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fastae', 'train', '--help']\n"
        "from fastae.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'nvidia', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 0.5
    assert result.stdout.splitlines()[-1] == "[]"
    for option in ("--loss", "--data", "--amp / --no-amp", "--compile / --no-compile", "--latent"):
        assert option in result.stdout
    assert all(name in result.stdout for name in LOSSES)


def test_without_a_command_it_shows_the_commands():
    result = fastae()
    assert "train" in result.stderr and "Usage: fastae" in result.stderr
    assert fastae("--version").stdout.startswith("fastae, version ")


def refused(result, *words):
    """One line on stderr that holds these words, exit code 2, nothing on stdout."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("fastae: error: ")
    for word in words:
        assert word in result.stderr
    return True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "mse"], ["--loss 'mse'", *LOSSES]),
        (["--iterations", "0"], ["--iterations must be from 1 to", "not 0"]),
        (["--batch-size", "-3"], ["--batch-size must be from 1 to", "not -3"]),
        (["--batch-size", "many"], ["'--batch-size'", "'many'"]),
        (["--lr", "nan"], ["--lr must be above 0 and", "not nan"]),
        (["--minutes", "-1"], ["--minutes must be above 0 and"]),
        (["--image-size", "100"], ["--image-size must be a multiple of 16, not 100"]),
        (["--contrast", "1.5"], ["--contrast must be from 0 to 1, not 1.5"]),
        (["--brightness", "-1"], ["--brightness must be from 0 to 1"]),
        (["--seed", "-1"], ["--seed must be from 0 to"]),
        (["--colour", "1"], ["No such option", "--colour"]),
        (["--device", "gpu"], ["--device 'gpu' is not one of: auto, cpu, cuda, cuda:N"]),
    ],
)
def test_a_wrong_setting(options, words, tmp_path):
    assert refused(fastae("train", *options, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_wrong_data_leaves_nothing(tmp_path, face_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("not an image")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (200, 200)).save(tmp_path / "one" / "a.jpg")
    out = tmp_path / "run"
    for data, options, words in (
        (tmp_path / "missing", [], "missing' does not exist"),
        (tmp_path / "texts" / "a.txt", [], "a.txt' is a file, not a folder"),
        (tmp_path / "empty", [], "no JPEG (*.jpg, *.jpeg) in"),
        (tmp_path / "texts", [], "no JPEG (*.jpg, *.jpeg) in"),
        (tmp_path / "one", [], "holds 1 usable JPEG"),
        (face_folder, ["--batch-size", 39], "--batch-size 39 is more than the 38 training"),
        (face_folder, ["--crop", 179], "skipped: 40 too small for --crop 179"),
    ):
        assert words in refuses("train", "--data", data, "--out", out, *options)
        assert not out.exists()


def test_a_broken_partition_file_is_named_with_its_line(tmp_path, face_paths):
    for number in range(3):
        os.link(face_paths[number], tmp_path / f"{number}.jpg")
    (tmp_path / "list_eval_partition.txt").write_text("0.jpg 0\n1.jpg train\n")
    assert refused(fastae("train", "--data", tmp_path), "list_eval_partition.txt:2: expected 'NAME 0|1|2'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_out(tmp_path, face_folder):
    tmp_path.chmod(0o500)
    assert refused(fastae("train", "--data", face_folder, "--out", tmp_path / "run"), "may be written to")


def test_an_out_that_is_used_or_cannot_be(tmp_path, face_folder):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for out, words in (
        (tmp_path / "used", "is not empty: name a new folder"),
        (tmp_path / "file", "is a file: name a new folder"),
        (tmp_path / "file" / "run", "cannot be made"),
        ("/proc/fastae/run", "cannot write the run folder"),
    ):
        assert words in refuses("train", "--data", face_folder, "--out", out, *SMALL)
    assert (tmp_path / "used" / "precious").read_text() == "kept"


def test_cuda_without_a_driver(tmp_path, face_folder):
    result = fastae(
        "train", "--data", face_folder, "--device", "cuda", "--out", tmp_path / "run",
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert refused(result, "--device cuda: ", "use --device cpu")


def test_data_comes_from_the_variable_or_is_drawn_and_the_run_says_which(tmp_path, face_folder):
    result = fastae("train", *SMALL, "--iterations", 1, cwd=tmp_path, FASTAE_DATA=str(face_folder))
    assert f"data      {face_folder} (from $FASTAE_DATA): 38 images to train on" in result.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-minibatch_bce")


def test_the_api_refuses_as_the_command_does():
    with pytest.raises(FastaeError, match="--batch-size must be from 1 to"):
        TrainConfig(batch_size=0)


RUN_SMALL = [*SMALL, "--iterations", 1, "--gpu-sample-hz", 0]


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_a_closed_stream_does_not_end_a_run(tmp_path, face_folder, closed):
    out = tmp_path / "run"
    arguments = ["train", "--data", face_folder, "--out", out, *RUN_SMALL]
    result = fastae(*arguments, preexec=lambda: [os.close(number) for number in closed])
    assert result.returncode == 0 and not result.stderr
    assert (out / "checkpoints" / "0000001.pt").exists()


def into_full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_a_full_disk_behind_stdout_does_not_end_a_run(tmp_path, face_folder):
    arguments = ["train", "--data", face_folder, "--out", tmp_path / "run", *RUN_SMALL]
    result = fastae(*arguments, preexec=into_full_disk)
    assert result.returncode == 0 and not result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["check", "--json", "-"]])
def test_a_full_disk_behind_what_is_asked_for_is_one_line(face_folder, arguments, unbuffered):
    arguments = [*arguments, face_folder] if "check" in arguments else arguments
    result = fastae(*arguments, preexec=into_full_disk, PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "stdout" in line and "No space left on device" in line


def test_docstrings_that_are_missing_are_one_line(tmp_path):
    assert refused(fastae("train", cwd=tmp_path, PYTHONOPTIMIZE="2"), "PYTHONOPTIMIZE=2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "entry",
    [entry for entry in dataclasses.fields(TrainConfig) if {"int", "float"} & set(entry.type.split(" | "))],
    ids=lambda entry: entry.name,
)
def test_every_number_has_bounds(entry):
    bounds = entry.metadata["within"]
    TrainConfig(**{entry.name: bounds.most})
    for value in (bounds.least - 1, bounds.most * 2, float("nan"), 10**400):
        with pytest.raises(FastaeError, match="must be"):
            TrainConfig(**{entry.name: value})


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "a/" * 3000, "\ud800", ""])
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", "PATH"],
        ["train", "--data", "PATH"],
        ["train", "--cache-dir", "PATH"],
        ["train", "--resume", "PATH"],
        ["sweep", "--out", "PATH"],
        ["reconstruct", "PATH", "a.jpg", "--out", "out"],
        ["reconstruct", "run", "a.jpg", "--out", "PATH"],
        ["reconstruct", "run", "a.jpg", "--out", "out", "--latent", "PATH"],
        ["export", "PATH", "--format", "torch", "--out", "out"],
        ["export", "run", "--format", "torch", "--out", "PATH"],
        ["check", "PATH"],
        ["check", ".", "--json", "PATH"],
        ["prepare", "celeba", "PATH", "--out", "out"],
        ["prepare", "celeba", ".", "--out", "PATH"],
        ["gpu", "PATH"],
        ["report", "PATH"],
        ["report", ".", "--out", "PATH"],
        ["cache", "list", "--cache-dir", "PATH"],
        ["cache", "clear", "--cache-dir", "PATH"],
    ],
)
def test_what_cannot_be_a_path_is_one_line(tmp_path, monkeypatch, arguments, path):
    monkeypatch.chdir(tmp_path)
    option = arguments[arguments.index("PATH") - 1]
    line = refuses(*(path if argument == "PATH" else argument for argument in arguments))
    assert not option.startswith("-") or line.startswith(option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [("config", "cache_dir"), ("config", "data"), ("data", "folder")])
def test_what_cannot_be_a_path_in_a_runs_settings_is_one_line(small_run, tmp_path, place):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("*.pt*"))
    described = json.loads((run / "config.json").read_text())
    described[place[0]][place[1]] = "a\0b"
    (run / "config.json").write_text(json.dumps(described))
    assert "NUL" in refuses("train", "--resume", run)
