"""Files from elsewhere run no code, do not exhaust memory or disk, and are printed harmlessly."""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.table import Table
from torch import nn

from fastae.cli import main as cli
from fastae.errors import FastaeError
from fastae.experiment.adam import Adam
from fastae.monitor.files import read_report
from fastae.runs import checkpoint
from fastae.runs.checkpoint import TrainingState
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import load_model
from fastae.runs.tensors import NO_DIGEST, write_tensors
from fastae.utils.console import HarmlessConsole
from fastae.utils.files import DRAFT

from .commands import SMALL, fastae, here, last_iteration
from .runs.test_checkpoint import SCALER

ROOT = Path(__file__).parents[1]
STATE = {"iteration": 1, "run": {"config": {}}, "seconds": 0.0, "scaler": SCALER}
"""What a checkpoint has besides tensors."""

SHAPE = (4, 3, 5, 5)


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, SHAPE[0], SHAPE[2]), nn.BatchNorm2d(SHAPE[0]))


def training_of(model):
    """Returns the tensors of a checkpoint that fits the model."""
    adam = Adam(dict(model.named_parameters()), 1e-3)
    return TrainingState(model.state_dict(), adam.mean, adam.square, adam.step_count).tensors()


def plant(folder, tensors, state=STATE, iteration=1):
    """Writes a checkpoint, with a digest that is right, since whoever makes the folder makes it, too."""
    path = folder / f"{iteration:07d}.safetensors"
    path.unlink(missing_ok=True)
    write_tensors(path, tensors, {"state": json.dumps(state | {"iteration": iteration})})
    return path


def only_line(folder, *model_of):
    """Returns the iteration of the newest valid checkpoint, and the one line about a newer one."""
    lines = []
    found = checkpoint.newest(folder, lines.append, *model_of)
    (line,) = lines
    assert "\n" not in line and len(line) < 500
    return found and found.iteration, line


class Evil:
    """A pickle that runs a shell command when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {DONE}",)


DONE = "malicious-pickle-was-run"


def headed(header, data=b""):
    """Returns a file in the format of safetensors with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sealed(tensors, data=b""):
    """Returns a file with these entries in its header, name -> entry, and the right digest."""
    blank = headed({"__metadata__": {"sha256": NO_DIGEST}} | tensors, data)
    return blank.replace(NO_DIGEST.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


WEIGHT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALICIOUS = {
    "pickle": pickle.dumps(Evil()),
    "pickle as a header": headed(pickle.dumps(Evil())),
    "too long a tensor": sealed({"weight": WEIGHT | {"data_offsets": [0, 1 << 40]}}),
    "overlapping tensors": sealed({"one": WEIGHT, "other": WEIGHT}, bytes(8)),
}


@pytest.mark.parametrize("content", MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_checkpoint_does_nothing_and_the_one_before_is_used(
    tmp_path, monkeypatch, model, content
):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, training_of(model))
    (tmp_path / "0000002.safetensors").write_bytes(content)
    iteration, line = only_line(tmp_path)
    assert iteration == 1 and "0000002.safetensors" in line
    assert not (tmp_path / DONE).exists()


def test_a_pipe_instead_of_a_checkpoint_does_not_block(tmp_path, model):
    plant(tmp_path, training_of(model))
    os.mkfifo(tmp_path / "0000002.safetensors")
    (tmp_path / "0000003.safetensors").touch()
    iteration, line = only_line(tmp_path)
    assert iteration == 1 and "0000003" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model/0.weight", torch.zeros(SHAPE).long()),
        ("model/0.weight", torch.full(SHAPE, torch.nan)),
        ("model/0.weight", None),
        ("model/more", torch.zeros(1)),
        ("mean/0.weight", torch.zeros(16)),
        ("mean/0.weight", torch.zeros(SHAPE).long()),
        ("mean/0.weight", torch.full(SHAPE, torch.inf)),
        ("square/0.weight", torch.full(SHAPE, -1.0)),
        ("square/0.weight", None),
        ("step", torch.zeros(2, dtype=torch.int64)),
        ("step", torch.tensor(-1)),
        ("step", None),
        ("more", torch.zeros(())),
    ],
)
def test_tensors_that_do_not_fit_the_run_are_named_and_the_checkpoint_before_is_used(
    tmp_path, model, name, value
):
    """Adam's kernel would write beyond moments that are too short."""
    good = training_of(model)
    plant(tmp_path, good)
    changed = {key: kept for key, kept in (good | {name: value}).items() if kept is not None}
    plant(tmp_path, changed, iteration=9)
    iteration, line = only_line(tmp_path, lambda config: model)
    assert iteration == 1 and "0000009.safetensors" in line and name in line


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("run", {"config": {}, "device": 1}, None),
        ("run", [], "run"),
        ("run", {}, "settings"),
        ("run", {"config": {}, "device": float("nan")}, "NaN"),
        ("run", {"config": {"seed": -1}}, "seed must be from 0"),
        ("run", {"config": {"seed": "0"}}, "Expected `int`, got `str` - at `.*seed`"),
        ("run", {"config": {"os": "system"}}, "'os' is not a setting"),
        ("seconds", -1.0, "seconds"),
        ("seconds", 1e300, "seconds"),
        ("seconds", "1", "seconds"),
        ("iteration", "9", "iteration"),
        ("iteration", 8, "iteration 8"),
        ("iteration", 9.0, "iteration"),
        ("scaler", {"scale": 1.0}, "lacks entries"),
        ("scaler", SCALER | {"_growth_tracker": 2**31}, "_growth_tracker"),
        ("scaler", SCALER | {"scale": -1.0}, "scale"),
        ("scaler", SCALER | {"scale": float("inf")}, "Infinity"),
    ],
)
def test_the_types_of_a_checkpoints_values_are_checked_first(tmp_path, model, part, value, reason):
    path = tmp_path / "0000009.safetensors"
    state = STATE | {"iteration": 9, part: value}
    write_tensors(path, training_of(model), {"state": json.dumps(state)})
    if reason is None:  # a description that cannot be read is not needed to resume
        assert checkpoint.newest(tmp_path, print, lambda config: model).iteration == 9
    else:
        iteration, line = only_line(tmp_path, lambda config: model)
        assert iteration is None and re.search(reason, line)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_checkpoint_without_a_state_is_refused(tmp_path, model, text):
    write_tensors(tmp_path / "0000009.safetensors", training_of(model), {"state": text})
    assert only_line(tmp_path)[0] is None


def test_a_resumed_run_survives_what_others_put_into_its_folder(run, capsys):
    """Moments of another shape, a huge metrics.csv, a folder as a draft."""
    kept = checkpoint.newest(run / "checkpoints", print)
    moments = kept.training.mean | {"encoder.0.weight": torch.zeros(16)}
    bad = replace(kept, iteration=6, training=replace(kept.training, mean=moments))
    checkpoint.write(run / "checkpoints", bad, keep=9)
    os.truncate(run / "metrics.csv", 1 << 40)
    (run / f"{DRAFT}folder").mkdir()
    here("train", "--resume", run, "--iterations", 7)
    printed = capsys.readouterr().out
    assert "0000006.safetensors" in printed and f"from iteration {kept.iteration}" in printed
    assert (run / "metrics.csv").stat().st_size < 10_000 and (run / f"{DRAFT}folder").is_dir()
    assert last_iteration(run) == 7


def test_a_run_does_not_begin_again_if_its_checkpoints_cannot_be_used(run):
    (run / "model.safetensors").unlink()
    path = run / "checkpoints" / "0000004.safetensors"
    content = path.read_bytes()
    path.unlink()  # it may be a hard link
    path.write_bytes(content[:-1])
    for use in (lambda: here("train", "--resume", run, "--iterations", 5), lambda: load_model(run)):
        with pytest.raises(FastaeError, match="holds no usable checkpoint"):
            use()
    assert path.exists()


MODULES = (
    "pickle|_pickle|pickletools|dill|cloudpickle|joblib|marshal|shelve|yaml|runpy"
    "|urllib\\.request|http\\.client|http\\.server|socketserver|requests|httpx|aiohttp"
)
FORBIDDEN = re.compile(
    rf"""^\s*(import|from)\ ({MODULES})\b
    | (?<![\w.])(eval|exec|compile|__import__)\(
    | \bos\.(system|popen)\( | \bgetoutput\( | \.extract(all)?\( | \bunpack_archive\( | \bread_pickle\(
    | \b(shell|allow_pickle)=(?!False)
    | \btorch\.load\(""",
    re.MULTILINE | re.VERBOSE,
)


def test_no_source_can_run_code_that_it_reads():
    """No source uses pickle, eval, a shell, unpacking of whole archives, or a network client or server."""
    sources = [path for name in ("fastae", "benchmarks", "scripts") for path in (ROOT / name).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        assert not (found := FORBIDDEN.search(path.read_text())), (path, found)


def test_tensorboard_is_suggested_only_on_localhost():
    """This is TensorBoard's default. It listens elsewhere only with `--host` or `--bind_all`."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    for path in (*pages, *ROOT.glob("fastae/**/*.py")):
        text = path.read_text()
        assert "bind_all" not in text and "tensorboard --host" not in text, path
    assert "tensorboard --logdir" in (ROOT / "README.md").read_text()


HOSTILE = "a\x1b]0;title\x07\x1b[31m\r\u202e\udcff\u009b2J [b]bold"


def is_harmless(text):
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("terminal", [False, True])
def test_printed_text_cannot_control_a_terminal(terminal, capsys):
    screen = io.StringIO()
    console = HarmlessConsole(file=screen, force_terminal=terminal, color_system=None, width=300)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    printed = screen.getvalue()
    assert printed.count(r"a\x1b]0;title\x07\x1b[31m\r\u202e\udcff\x9b2J [b]bold") == 4
    assert is_harmless(printed)
    assert cli.refuse(f"data folder {HOSTILE}\ndoes not exist") == 2
    error = capsys.readouterr().err
    assert r"a\x1b]0;title\x07\x1b[31m\r\u202e\udcff\x9b2J [b]bold does not exist" in error
    assert error.count("\n") == 1 and is_harmless(error)


def test_a_run_with_hostile_names_prints_harmless_text(tmp_path, face_paths, capsys):
    """The data folder, its files and the run have such names."""
    data = tmp_path / f"-data\n{HOSTILE}"
    data.mkdir()
    names = ["-rf", " ", "new\nline", "é\U0001f600", "x" * 251, HOSTILE]
    for name, face in zip(names, face_paths, strict=False):
        (data / f"{name}.jpg").write_bytes(Path(face).read_bytes())
        (data / f"{name[:240]}-bad.jpg").write_bytes(b"")
    out = tmp_path / f"run\nforged{HOSTILE}"
    options = [*SMALL, "--iterations", 2, "--loader", "dali"]
    here("train", "--data", data, "--out", out, *options)
    skipped = (out / "skipped.txt").read_text()
    printed = capsys.readouterr()
    assert all(map(is_harmless, (*printed, skipped)))
    assert not [line for line in printed.out.splitlines() if line.startswith("forged")]
    assert len(skipped.splitlines()) == len(names)
    assert all(line.startswith("empty\t") for line in skipped.splitlines())
    assert json.loads((out / "config.json").read_text())["data"]["folder"] == str(data)
    assert (out / "gpu.png").is_file()


@pytest.mark.parametrize("name", ["a; touch PWNED", "it's $(touch PWNED)", "two  blanks", HOSTILE, "a\n'\\b"])
def test_a_command_that_is_printed_is_one_word_per_path(tmp_path, name, capsys):
    folder = tmp_path / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").touch()
    assert cli.refuse(RunFolder(folder).resume_hint()) == 2
    printed = capsys.readouterr().err.rstrip("\n")
    assert "\n" not in printed
    command = "printf '%s\\0' " + printed.partition("--resume ")[2]
    words = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True).stdout
    assert words == os.fsencode(folder) + b"\0" and not (tmp_path / "PWNED").exists()


def test_a_terminal_with_only_ascii_gets_escapes(tmp_path):
    result = fastae("cache", "list", "--cache-dir", tmp_path / "é\U0001f600", PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and r"\xe9\U0001f600" in result.stdout


def foreign_report(text):
    """Returns the values of a gpu.json that contains `text` wherever a text may be."""
    figures = ("mean", "p5", "p50", "p95", "max")
    gpu = {
        "record": {"prefix": text, "gpu": {"index": 0, "name": text}, "lost": text,
                   "missing": {text: text}, "errors": {text: {text: 1}}},
        "statistics": {},
    }  # fmt: skip
    summary = {
        "seconds": 60.0, "cores": [2, 2, 2], "phases": {"train": 60.0}, "measured": "train",
        "gpus": [gpu], "failure": text,
        "host": {text: {"label": text, "unit": text} | dict.fromkeys(figures, 1)},
    }  # fmt: skip
    diagnosis = {"verdict": "unknown", "advice": [text]}
    return {"summary": summary, "diagnosis": diagnosis, "missing": text}


def test_a_foreign_utilisation_report_cannot_control_a_terminal(tmp_path, capsys):
    report = foreign_report(HOSTILE)
    (tmp_path / "gpu.json").write_text(json.dumps([report]))
    (tmp_path / "config.json").write_text("{}")
    assert here("gpu", tmp_path) is None
    assert is_harmless(capsys.readouterr().out)
    for mean in ("much", 1e999):
        report["summary"]["host"][HOSTILE]["mean"] = mean
        (tmp_path / "gpu.json").write_text(json.dumps([report]))
        with pytest.raises(FastaeError, match="is not a report of this version"):
            read_report(tmp_path)
