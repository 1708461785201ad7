"""The command line as a user sees it: help is fast, a mistake is one line and exit code 2."""

import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fastae.cli.main import cli, report_error
from fastae.config import TrainConfig
from fastae.data import open_loader
from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES
from fastae.report.make import make_report
from fastae.runs.loaded_model import load_model
from fastae.training.resume import resume

from .commands import FASTAE, SMALL, claim, fastae, here, killed_before_its_first_checkpoint, refuses


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fastae', 'train', '--help']\n"
        "from fastae.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'nvidia', 'numpy', 'rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    names = ("--loss", "--amp / --no-amp", "--latent", *LOSSES)
    assert all(part in result.stdout for part in (*names, "[16 to 4096]", "[1 or more]", "[more than 0]"))


CALLS = [(), *((name,) for name in cli.commands)]
CALLS += [(name, sub) for name, command in cli.commands.items() for sub in getattr(command, "commands", ())]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_help_fits_into_80_columns(capsys, monkeypatch, call):
    monkeypatch.setenv("COLUMNS", "80")
    here(*call, "--help")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "..." not in printed.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "optimize", "words"),
    [(["--loss", "mse"], "", ["--loss", *LOSSES]), ([], "2", ["PYTHONOPTIMIZE=2"])],
    ids=["found by click", "found by fastae"],
)
def test_a_mistake_is_one_line_with_exit_code_2(tmp_path, arguments, optimize, words):
    result = fastae("train", *arguments, cwd=tmp_path, PYTHONOPTIMIZE=optimize)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("fastae: error: ")
    assert all(word in line for word in words) and not list(tmp_path.iterdir())


def test_fastae_without_a_command_prints_how_it_is_used():
    assert "Usage: fastae" in fastae().stderr


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("missing", [], "missing' does not exist"),
        ("faces/000001.jpg", [], "000001.jpg' is a file"),
        ("empty", [], "no JPEG"),
        ("split", [], "list_eval_partition.txt:2:"),
        ("faces", ["--batch-size", 39], "--batch-size 39"),
    ],
)
def test_wrong_data_are_refused_and_leave_no_run_folder(tmp_path, face_folder, data, options, words):
    (tmp_path / "faces").symlink_to(face_folder)
    (tmp_path / "empty").mkdir()
    shutil.copytree(face_folder, tmp_path / "split")
    (tmp_path / "split" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg train\n")
    run = ["--data", tmp_path / data, "--out", tmp_path / "run", *SMALL, *options]
    assert words in refuses("train", *run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["file", "file/run", "closed/run", "/proc/fastae/run"])
def test_an_out_folder_that_cannot_be_made_is_refused(tmp_path, face_folder, out):
    if out == "closed/run" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert repr(str(tmp_path / out)) in refuses(
        "train", "--data", face_folder, "--out", tmp_path / out, *SMALL
    )


RUN_SMALL = [*SMALL, "--iterations", 1, "--gpu-sample-hz", 0]


def into_full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def into_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def without_streams():
    os.closerange(0, 3)


def test_a_run_continues_without_its_streams(tmp_path, face_folder):
    out = tmp_path / "run"
    result = fastae("train", "--data", face_folder, "--out", out, *RUN_SMALL, preexec=without_streams)
    assert result.returncode == 0 and not result.stderr
    assert (out / "checkpoints" / "0000001.safetensors").exists()


BUFFERED = "from fastae.cli import main; main.cli.main = lambda **options: print('kept'); main.main()"
"""A program whose command leaves its output in Python's buffer. click flushes what it prints."""


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [([*FASTAE, "--help"], ""), ([*FASTAE, "--help"], "1"), ([sys.executable, "-c", BUFFERED], "")],
    ids=["by click", "unbuffered", "at the end"],
)
def test_a_failed_write_to_stdout_is_one_line(command, unbuffered):
    options = {"preexec_fn": into_full_disk, "env": os.environ | {"PYTHONUNBUFFERED": unbuffered}}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and "stdout" in line and os.strerror(errno.ENOSPC) in line


def test_a_closed_pipe_as_in_help_into_head_is_not_an_error():
    result = fastae("--help", preexec=into_closed_pipe)
    assert (result.returncode, result.stderr) == (1, "")


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


@pytest.mark.parametrize(
    ("name", "value"), [("iterations", 2.0), ("iterations", "2"), ("amp", 1), ("lr", "1"), ("seed", None)]
)
def test_a_setting_of_another_type_is_refused(name, value):
    with pytest.raises(FastaeError, match=f"^{name} must be of type"):
        TrainConfig(**{name: value})


def test_a_value_of_any_length_is_repeated_in_part(capsys):
    with pytest.raises(click.UsageError) as caught:
        here("train", "--seed", "9" * 5000)
    assert report_error(caught.value) == 2
    line = capsys.readouterr().err
    assert "--seed" in line and "999" in line and len(line) < 600


@pytest.mark.parametrize(("command", "limit"), [("train", 300), ("sweep", 2200)])
def test_too_small_a_limit_of_memory_is_named_before_any_library_fails(tmp_path, command, limit):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit * 10**6,) * 2)

    result = fastae(command, cwd=tmp_path, preexec=limited)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "ulimit -v" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_float_setting_accepts_an_integer():
    assert TrainConfig(lr=1, minutes=2).lr == 1


IMPOSSIBLE = {
    "name too long": "x" * 300, "path too long": "a/" * 3000, "empty": "",
    "NUL": "a\0b", "surrogate": "\ud800", "too deep": "a/" * 2000,
}  # fmt: skip


COMMANDS = """
train --out PATH
train --data PATH
train --cache-dir PATH
train --resume PATH
sweep --out PATH
reconstruct PATH a.jpg --out out
reconstruct run a.jpg --out PATH
export PATH --out out
export run --out PATH
check PATH
prepare celeba PATH --out out
prepare celeba . --out PATH
gpu PATH
report PATH
report . --out PATH
report . --data PATH
cache list --cache-dir PATH
cache clear --cache-dir PATH
"""


@pytest.mark.parametrize("path", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("command", COMMANDS.strip().splitlines())
def test_an_invalid_path_is_refused_in_one_line(tmp_path, monkeypatch, command, path):
    monkeypatch.chdir(tmp_path)
    arguments = command.split()
    option = arguments[arguments.index("PATH") - 1]
    line = refuses(*(path if argument == "PATH" else argument for argument in arguments))
    assert not option.startswith("-") or line.startswith(option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [line for line in COMMANDS.split("\n") if line and "cache " not in line])
def test_a_path_that_becomes_too_long_is_refused_in_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    path = "/".join(["x" * 250] * 16 + ["x" * 70])  # with the name of a file it is too long
    refuses(*(path if word == "PATH" else word for word in command.split()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_batch_norm_needs_more_than_one_value_per_channel(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert refuses(command, "--image-size", 16, "--batch-size", 1)
    assert not list(tmp_path.iterdir())


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_data_and_cache_folders_come_from_environment_variables(tmp_path, face_folder, monkeypatch, capsys):
    """Here they are in the home folder. The run gets a name, and the cache contains compiled kernels."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(face_folder)
    monkeypatch.setenv("FASTAE_DATA", "~/data")
    monkeypatch.setenv("FASTAE_CACHE", "~/cache")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    here("train", *RUN_SMALL)
    printed = capsys.readouterr().out
    assert f"{tmp_path}/data (from $FASTAE_DATA)\n" in printed and "38 to train on" in printed
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-minibatch_bce")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "kernels")
    here("check", "~/data")
    here("cache", "list", "--cache-dir", "~/cache")
    assert "compiled by torch.compile" in capsys.readouterr().out
    assert visible(tmp_path) == {"data", "runs", "cache"}


def test_python_functions_expand_the_home_folder(tmp_path, face_folder, run, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(face_folder)
    config = TrainConfig(data="~/data", out=Path("~/out"), cache_dir="~root")
    assert (config.data, config.out) == (f"{tmp_path}/data", f"{tmp_path}/out")
    assert config.cache_dir == str(Path("~root").expanduser())
    loader = open_loader("~/data", batch_size=2, device="cpu", seed=0, kind="resident", cache="~/cache")
    assert len(loader) == 20
    assert load_model("~/run").iteration == 4
    assert resume("~/run") == run
    assert make_report([Path("~/run")], Path("~/page.html"), data="~/data") == tmp_path / "page.html"
    assert visible(tmp_path) == {"data", "run", "cache", "page", "page.html"}
    assert TrainConfig(out="~nobody-of-that-name/x").out == "~nobody-of-that-name/x"


def test_an_unknown_home_folder_is_refused(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "HOME" in refuses("train", "--out", "~/run")


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000], ids=["name too long", "path too long"])
@pytest.mark.parametrize("command", ["cache list", "check .", "train --data ."])
def test_an_invalid_path_in_a_variable_is_refused_in_one_line(face_folder, monkeypatch, command, path):
    monkeypatch.chdir(face_folder)
    monkeypatch.setenv("FASTAE_CACHE", path)
    assert refuses(*command.split()).startswith("$FASTAE_CACHE")


@pytest.mark.parametrize(("part", "name"), [("config", "cache_dir"), ("config", "data"), ("data", "folder")])
def test_an_invalid_path_in_config_json_is_refused_in_one_line(run, part, name):
    killed_before_its_first_checkpoint(run)
    claim(run, part, **{name: "a\0b"})
    assert "NUL" in refuses("train", "--resume", run)
