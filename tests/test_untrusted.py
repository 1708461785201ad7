"""Files from elsewhere run no code, do not exhaust memory or disk, and are printed harmlessly."""

import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from fastae.runs.sweep_folder import SweepFolder
from rich.table import Table
from torch import nn

from fastae.cli import main as cli
from fastae.errors import FastaeError
from fastae.monitor.files import read_report
from fastae.runs import checkpoint
from fastae.runs.loaded_model import load_model
from fastae.utils.console import HarmlessConsole
from fastae.utils.files import DRAFT

from .commands import SMALL, fastae, here, last_iteration

ROOT = Path(__file__).parents[1]
SCALER = {
    "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5,
    "growth_interval": 2000, "_growth_tracker": 0,
}  # fmt: skip
STATE = {"model": {}, "optimizer": {}, "scaler": {}, "iteration": 1, "config": {}, "run": {}}


class Evil:
    """A pickle that runs a shell command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def saved(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def archived(pickled, compression=zipfile.ZIP_STORED):
    """Returns a file as torch.save writes it, but with any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in (("data.pkl", pickled), ("version", "3\n"), ("byteorder", "little")):
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def plant(folder, content, iteration=1):
    """Writes a checkpoint of these bytes, with a digest that matches; returns its path."""
    path = folder / f"{iteration:07d}.safetensors"
    path.write_bytes(content)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    return path


DONE = "malicious-pickle-was-run"
EVIL = Evil(f"touch {DONE}")
GOOD = STATE | {"model": {"weight": torch.ones(3, 4)}}
MALICIOUS = [
    (lambda: pickle.dumps(EVIL), ""),
    (lambda: archived(pickle.dumps(EVIL, 5)), ""),
    (lambda: saved(EVIL), ""),
    (lambda: saved(EVIL, _use_new_zipfile_serialization=False), ""),
    (lambda: saved(STATE | {"model": {"encoder.0.weight": EVIL}}), ""),
    (lambda: archived(pickle.dumps(STATE), zipfile.ZIP_DEFLATED), "compressed"),
    (lambda: archived(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R."), "names builtins bytearray"),
    (lambda: archived(b"\x80\x02" + b"N0" * (9 << 20) + b"}."), "not written by fastae"),
    (lambda: archived(pickle.dumps(STATE)[:-5]), "pickle exhausted"),
    (lambda: b"PK\x03\x04", "not a zip file"),
    *((lambda state=state: saved(state), "")
      for state in ([], 1, None, {}, STATE | {"iteration": "1"}, STATE | {"model": []})),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("make", "reason"), MALICIOUS)
def test_a_malicious_checkpoint_does_nothing_and_the_one_before_is_used(tmp_path, monkeypatch, make, reason):
    """One line names it. It may run code, exhaust memory, or not be the state of a run."""
    monkeypatch.chdir(tmp_path)
    lines = []
    plant(tmp_path, saved(GOOD))
    plant(tmp_path, make(), iteration=2)
    assert checkpoint.newest(tmp_path, lines.append).iteration == 1
    assert (
        len(lines) == 1 and "\n" not in lines[0] and "0000002.safetensors" in lines[0] and reason in lines[0]
    )
    assert not (tmp_path / DONE).exists()


def test_a_pipe_instead_of_a_checkpoint_does_not_block(tmp_path):
    lines = []
    plant(tmp_path, saved(GOOD))
    os.mkfifo(tmp_path / "0000002.safetensors")
    (tmp_path / "0000003.safetensors").touch()
    os.mkfifo(tmp_path / "0000003.pt.sha256")
    assert checkpoint.newest(tmp_path, lines.append).iteration == 1 and len(lines) == 1


def test_a_model_size_that_config_json_claims_allocates_no_memory(run):
    (run / "model.safetensors").unlink()
    described = json.loads((run / "config.json").read_text())
    described["config"] |= {"latent": 2**20, "image_size": 4096}
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(FastaeError, match="holds no usable checkpoint"):
        load_model(run)


def replaced(nest, path, value):
    """Returns nested dicts with `value` at a path of keys, or without this entry if `value` is None."""
    name, *rest = path
    if rest:
        return nest | {name: replaced(nest[name], rest, value)}
    return {key: old for key, old in nest.items() if key != name} | ({} if value is None else {name: value})


SHAPE = (4, 3, 5, 5)
MOMENT = ["optimizer", "state", 0, "exp_avg"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["model", "0.weight"], torch.zeros(1).expand(SHAPE)),
        (["model", "0.weight"], torch.zeros(SHAPE).long()),
        (["model", "0.weight"], torch.full(SHAPE, torch.nan)),
        (["model", "0.weight"], "weight"),
        (["model", "0.weight"], None),
        (["model", "more"], torch.zeros(1)),
        (MOMENT, torch.zeros(16)),
        (MOMENT, torch.zeros(1).expand(SHAPE)),
        (MOMENT, torch.zeros(SHAPE).long()),
        (MOMENT, torch.full(SHAPE, torch.inf)),
        (["optimizer", "state", 0, "exp_avg_sq"], torch.full(SHAPE, -1.0)),
        (["optimizer", "state", 0, "exp_avg_sq"], None),
        (["optimizer", "state", 0, "step"], torch.zeros(2)),
        (["optimizer", "state", 0, "step"], 4),
        (["optimizer", "state", 0, "more"], torch.zeros(())),
        (["optimizer", "state", 0], {}),
        (["optimizer", "state", 0], []),
        (["optimizer", "state", 99], {"step": torch.zeros(())}),
        (["optimizer", "state"], None),
        (["scaler"], {"scale": 1.0}),
        (["scaler"], SCALER | {"_growth_tracker": 2**31}),
        (["scaler"], SCALER | {"scale": torch.inf}),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_run_is_named_and_the_one_before_used(tmp_path, path, value):
    """Adam's kernel would write beyond moments that are too short."""
    model = nn.Sequential(nn.Conv2d(3, SHAPE[0], SHAPE[2]), nn.BatchNorm2d(SHAPE[0]))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(torch.rand(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    good = STATE | {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": SCALER}
    lines = []
    plant(tmp_path, saved(good))
    plant(tmp_path, saved(replaced(good | {"iteration": 9}, path, value)), iteration=9)
    assert checkpoint.newest(tmp_path, lines.append, lambda config: model).iteration == 1
    assert len(lines) == 1 and "0000009.safetensors" in lines[0] and "\n" not in lines[0]


def test_a_resumed_run_survives_what_others_put_into_its_folder(run, capsys):
    """Moments of another shape, a checkpoint of an older version, a huge metrics.csv, a folder as a draft."""
    state = last_state(run)
    older = {name: value for name, value in state.items() if name != "progress"} | {"iteration": 5}
    plant(run / "checkpoints", saved(older), iteration=5)
    bad_moments = replaced(state | {"iteration": 6}, MOMENT, torch.zeros(16))
    plant(run / "checkpoints", saved(bad_moments), iteration=6)
    os.truncate(run / "metrics.csv", 1 << 40)
    (run / f"{DRAFT}folder").mkdir()
    here("train", "--resume", run, "--iterations", 7)
    printed = capsys.readouterr().out
    assert "0000006.safetensors" in printed and "from iteration 5" in printed
    assert "lost or changed rows" not in printed, "no row is missing"
    assert (run / "metrics.csv").stat().st_size < 10_000 and (run / f"{DRAFT}folder").is_dir()
    assert last_iteration(run) == 7


def nested(depth):
    """Returns a list that pickles to a kilobyte, but in which a walk meets 2^depth numbers."""
    made = [0]
    for _ in range(depth):
        made = [made, made]
    return made


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("run", {"device": nested(40)}, "one list or mapping twice"),
        ("run", {"device": ["x" * (1 << 20)] * 100}, "repeats its texts"),
        ("run", {"device": float("nan")}, "not JSON compliant"),
        ("config", {"seed": torch.zeros(3)}, "not JSON serializable"),
        ("config", {"seed": -1}, "seed must be from 0"),
        ("config", {"seed": "0"}, "Expected `int`, got `str` - at `.*seed`"),
        ("progress", {"seconds": -1.0}, "seconds"),
        ("progress", {"events": [1]}, "events"),
        ("progress", {"metrics": {"size": "all", "sha256": ""}}, "metrics"),
        ("progress", [], "progress|object"),
    ],
)
def test_the_types_of_a_checkpoints_values_are_checked_first(small_run, tmp_path, part, value, reason):
    """The digest is valid, since whoever made the folder made the digest, too."""
    state = last_state(small_run) | {"iteration": 9}
    state[part] = value if isinstance(value, list) else state[part] | value
    plant(tmp_path, saved(state), iteration=9)
    lines = []
    assert checkpoint.newest(tmp_path, lines.append) is None
    assert len(lines) == 1 and re.search(reason, lines[0]) and len(lines[0]) < 500


def test_a_run_does_not_begin_again_if_its_checkpoints_cannot_be_used(run):
    (run / "model.safetensors").unlink()
    (run / "checkpoints" / "0000004.pt.sha256").unlink()
    for use in (lambda: here("train", "--resume", run, "--iterations", 5), lambda: load_model(run)):
        with pytest.raises(FastaeError, match="holds no usable checkpoint"):
            use()
    assert (run / "checkpoints" / "0000004.safetensors").exists()


def test_a_sweep_json_that_names_a_folder_outside_is_refused(tmp_path):
    """A sweep may remove the folder of a run that has not begun."""
    for name in ("../precious", str(tmp_path), ".", "", "pixel_bce/..", "pixel_bce-1/../../precious"):
        entry = {"name": name, "loss": "pixel_bce", "seed": 0}
        (tmp_path / "sweep.json").write_text(json.dumps({"plan": {}, "runs": [entry]}))
        with pytest.raises(FastaeError, match="invalid name of a run"):
            SweepFolder(tmp_path).read()


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
    assert r"a\x1b]0;title\x07\x1b[31m \u202e\udcff\x9b2J [b]bold does not exist" in error
    assert error.count("\n") == 1 and is_harmless(error)


def test_a_run_with_hostile_names_prints_harmless_text(tmp_path, face_paths, capsys):
    """The data folder, its files and the run have such names."""
    data = tmp_path / f"-data\n{HOSTILE}"
    data.mkdir()
    names = ["-rf", " ", "new\nline", "é\U0001f600", "x" * 251, HOSTILE]
    for name, face in zip(names, face_paths, strict=False):
        (data / f"{name}.jpg").write_bytes(Path(face).read_bytes())
        (data / f"{name[:240]}-bad.jpg").write_bytes(b"")
    out = tmp_path / f"run{HOSTILE}"
    options = [*SMALL, "--iterations", 2, "--loader", "dali"]
    here("train", "--data", data, "--out", out, *options)
    skipped = (out / "skipped.txt").read_text()
    assert all(map(is_harmless, (*capsys.readouterr(), skipped)))
    assert len(skipped.splitlines()) == len(names)
    assert all(line.startswith("empty\t") for line in skipped.splitlines())
    assert json.loads((out / "config.json").read_text())["data"]["folder"] == str(data)
    assert (out / "gpu.png").is_file()


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
    for options in ([], ["--json"]):
        assert here("gpu", tmp_path, *options) in (0, None)
        assert is_harmless(capsys.readouterr().out)
    for mean in ("much", 1e999):
        report["summary"]["host"][HOSTILE]["mean"] = mean
        (tmp_path / "gpu.json").write_text(json.dumps([report]))
        with pytest.raises(FastaeError, match="is not a report of this version"):
            read_report(tmp_path)
