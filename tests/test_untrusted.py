"""What came from elsewhere runs no code, takes no more than its share, and is printed harmlessly."""

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from rich.table import Table

from fastae.cli import main as cli
from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.model import AutoEncoder
from fastae.monitor.files import read_report
from fastae.runs import checkpoint
from fastae.runs.archive import require_plain
from fastae.runs.loaded_model import load_model
from fastae.runs.sweep_folder import SweepFolder
from fastae.tools.dataset import check_folder
from fastae.training.resume import resume_run
from fastae.utils.console import HarmlessConsole

from .commands import SMALL, fastae

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
    """A file of torch.save's kind around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in (("data.pkl", pickled), ("version", "3\n"), ("byteorder", "little")):
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def plant(folder, content, iteration=1):
    """A checkpoint of these bytes, and the digest that vouches for them."""
    path = folder / f"{iteration:07d}.pt"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "form", ["a pickle", "protocol 5", "torch.save", "torch.save's old form", "in the model"]
)
def test_a_malicious_pickle_does_nothing(tmp_path, form):
    evil = Evil(f"touch {tmp_path}/done")
    content = {
        "a pickle": lambda: pickle.dumps(evil),
        "protocol 5": lambda: archived(pickle.dumps(evil, 5)),
        "torch.save": lambda: saved(evil),
        "torch.save's old form": lambda: saved(evil, _use_new_zipfile_serialization=False),
        "in the model": lambda: saved(STATE | {"model": {"encoder.0.weight": evil}}),
    }[form]()
    said = []
    (tmp_path / "checkpoints").mkdir()
    plant(tmp_path / "checkpoints", content)
    assert checkpoint.newest(tmp_path / "checkpoints", said.append) is None
    assert len(said) == 1 and "\n" not in said[0] and "0000001.pt cannot be read" in said[0]
    assert not (tmp_path / "done").exists()


def test_the_checkpoint_before_a_malicious_one_is_used(small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, symlinks=True)
    plant(run / "checkpoints", saved(Evil(f"touch {tmp_path}/done")), iteration=99)
    assert load_model(run).iteration == 4
    assert "0000099.pt cannot be read" in capsys.readouterr().out
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "state", [[], 1, None, {}, {**STATE, "iteration": "1"}, {**STATE, "model": []}, {"model": {}}]
)
def test_what_is_no_state_of_a_run_is_refused(tmp_path, state):
    said = []
    plant(tmp_path, saved(state))
    assert checkpoint.newest(tmp_path, said.append) is None
    assert "0000001.pt is not one of fastae's" in said[0]


def test_only_tensors_that_are_there_are_let_in(small_run, tmp_path):
    (good,) = (small_run / "checkpoints").glob("0*.pt")
    require_plain(good)
    with zipfile.ZipFile(good) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}

    def packed(compression):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, record in content.items():
                archive.writestr(name, record)
        return file.getvalue()

    require_plain(plant(tmp_path, packed(zipfile.ZIP_STORED)))
    for bomb, reason in (
        (packed(zipfile.ZIP_DEFLATED), "compressed"),
        (archived(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R."), "names builtins bytearray"),
        (archived(b"\x80\x02" + b"N0" * (9 << 20) + b"}."), "not one of fastae's"),
        (archived(pickle.dumps(STATE)[:-5]), "pickle exhausted"),
        (saved(Evil("true")), "names posix system"),
        (b"PK\x03\x04", "not a zip file"),
    ):
        with pytest.raises(ValueError, match=reason):
            require_plain(plant(tmp_path, bomb))
        said = []
        assert checkpoint.newest(tmp_path, said.append) is None
        assert len(said) == 1 and reason in said[0]
    os.mkfifo(tmp_path / "0000002.pt")
    (tmp_path / "0000003.pt").touch()
    os.mkfifo(tmp_path / "0000003.pt.sha256")
    assert checkpoint.newest(tmp_path, said.append) is None and len(said) == 3


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"latent": 2**20, "image_size": 4096}, "holds no usable checkpoint"),
        ({"latent": 2**62}, r"config\.json: --latent must be"),
        ({"image_size": 2**40}, r"config\.json: --image-size must be"),
    ],
)
def test_a_model_that_config_json_claims_takes_no_memory(small_run, tmp_path, claim, reason):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, symlinks=True)
    described = json.loads((run / "config.json").read_text())
    described["config"] |= claim
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(FastaeError, match=reason):
        load_model(run)


def replaced(nest, path, value):
    """The same nest of dicts with another value at a path of keys; without it where that is None."""
    name, *rest = path
    if rest:
        return nest | {name: replaced(nest[name], rest, value)}
    return {key: old for key, old in nest.items() if key != name} | ({} if value is None else {name: value})


SHAPE = (32, 3, 5, 5)
"""Of the first weight."""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["model", "encoder.0.weight"], torch.zeros(1).expand(SHAPE)),
        (["model", "encoder.0.weight"], torch.zeros(SHAPE).long()),
        (["model", "encoder.0.weight"], torch.full(SHAPE, torch.nan)),
        (["model", "encoder.0.weight"], "weight"),
        (["model", "encoder.0.weight"], None),
        (["model", "more"], torch.zeros(1)),
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(16)),
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(1).expand(SHAPE)),
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(SHAPE).long()),
        (["optimizer", "state", 0, "exp_avg"], torch.full(SHAPE, torch.inf)),
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
def test_a_checkpoint_that_does_not_fit_its_run_is_named_and_the_one_before_used(
    small_run, tmp_path, path, value
):
    """Adam's kernel would write beyond moments that are too short."""
    good, said = checkpoint.newest(small_run / "checkpoints", print), []
    for file in (small_run / "checkpoints").glob("0*"):
        os.link(file, tmp_path / file.name)
    plant(tmp_path, saved(replaced(good | {"iteration": 9}, path, value)), iteration=9)
    assert checkpoint.newest(tmp_path, said.append, AutoEncoder(32, 16))["iteration"] == 4
    assert len(said) == 1 and "0000009.pt" in said[0] and "\n" not in said[0]


def test_a_resumed_run_survives_moments_of_another_shape(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, symlinks=True)
    state = checkpoint.newest(run / "checkpoints", print)
    bad = replaced(state | {"iteration": 5}, ["optimizer", "state", 0, "exp_avg"], torch.zeros(16))
    plant(run / "checkpoints", saved(bad), iteration=5)
    result = fastae("train", "--resume", run, "--iterations", 6)
    assert result.returncode == 0, result.stderr
    assert "0000005.pt" in result.stdout and "from iteration 4" in result.stdout


def test_a_run_is_not_begun_again_over_checkpoints_that_cannot_be_used(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, symlinks=True)
    (run / "checkpoints" / "0000004.pt.sha256").unlink()
    (run / "model.safetensors").unlink()
    for use in (lambda: resume_run(run, {"iterations": 5}), lambda: load_model(run)):
        with pytest.raises(FastaeError, match="holds no usable checkpoint"):
            use()
    assert (run / "checkpoints" / "0000004.pt").exists()


def test_a_sweeps_file_names_no_folder_outside_it(tmp_path):
    """The folder of a run that had not begun is removed."""
    for name in ("../precious", str(tmp_path), ".", "", "pixel_bce/..", "pixel_bce-1/../../precious"):
        entry = {"name": name, "loss": "pixel_bce", "seed": 0}
        (tmp_path / "sweep.json").write_text(json.dumps({"plan": {}, "runs": [entry]}))
        with pytest.raises(FastaeError, match="which no sweep does"):
            SweepFolder(tmp_path).read()


def calls(tree):
    """(name, keywords) of every call; the name as it is written: 'torch.load'."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_that_is_read_can_be_run():
    """No pickle, eval, shell or unpacking of whole archives, client or server in any source."""
    modules = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}
    network = {"urllib.request", "http.client", "http.server", "socketserver", "requests", "httpx", "aiohttp"}
    functions = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"}
    read = 0
    for path in (
        path for place in ("fastae", "benchmarks", "scripts") for path in (ROOT / place).rglob("*.py")
    ):
        tree = ast.parse(path.read_text())
        read += 1
        for node in ast.walk(tree):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not modules & {name.partition(".")[0] for name in names}, path
            assert not network & set(names), path
        for name, keywords in calls(tree):
            assert name not in functions, path
            assert not name.endswith((".extractall", ".extract", "unpack_archive", "read_pickle")), path
            assert keywords.get("shell", "False") == "False", path
            assert keywords.get("allow_pickle", "False") == "False", path
            if name.endswith("torch.load"):
                assert keywords.get("weights_only") == "True", path
    assert read > 50


def test_tensorboard_is_suggested_on_localhost_alone():
    """Which is its default: it listens elsewhere only where it is told to."""
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("fastae/**/*.py"),
        ROOT / "Makefile",
    ):
        text = path.read_text()
        assert "bind_all" not in text and "tensorboard --host" not in text, path
    assert "tensorboard --logdir" in (ROOT / "README.md").read_text()


HOSTILE = "a\x1b]0;title\x07\x1b[31m\r\u202e\udcff\u009b2J [b]bold"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_that_is_printed_is_obeyed_by_a_terminal(terminal):
    screen = io.StringIO()
    console = HarmlessConsole(file=screen, force_terminal=terminal, color_system=None, width=300)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    printed = screen.getvalue()
    assert printed.count(r"a\x1b]0;title\x07\x1b[31m\r\u202e\udcff\x9b2J [b]bold") == 4
    printed.encode()
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_an_error_is_one_harmless_line(capsys):
    assert cli.refuse(f"data folder {HOSTILE}\ndoes not exist") == 2
    said = capsys.readouterr().err
    assert r"a\x1b]0;title\x07\x1b[31m \u202e\udcff\x9b2J [b]bold does not exist" in said
    assert said.count("\n") == 1 and said[:-1].isprintable()


def test_a_run_whose_names_are_all_hostile(tmp_path, face_paths):
    """Folder, files and run; on a terminal that knows ASCII alone."""
    data = tmp_path / f"-data\n{HOSTILE}"
    data.mkdir()
    names = [
        "-rf.jpg",
        " .jpg",
        "new\nline.jpg",
        "é\U0001f600.jpg",
        "x" * 251 + ".jpg",
        f"{HOSTILE}.jpg",
    ]
    for name, face in zip(names, face_paths, strict=False):
        (data / name).write_bytes(Path(face).read_bytes())
        (data / f"{name[:240]}-bad.jpg").write_bytes(b"")
    out = tmp_path / f"run{HOSTILE}"
    result = fastae(
        "train", "--data", data, "--out", out, *SMALL, "--iterations", 2, "--loader", "dali",
        PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for text in (result.stdout, result.stderr, (out / "skipped.txt").read_text()):
        assert all(character.isprintable() or character in "\n\t" for character in text)
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert len(skipped) == len(names) and all(line.startswith("empty\t") for line in skipped)
    assert json.loads((out / "config.json").read_text())["data"]["folder"] == str(data)


def test_a_report_that_somebody_else_wrote_is_shown_harmlessly(small_run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    figures = ("mean", "p5", "p50", "p95", "max")
    report = {
        "command": HOSTILE,
        "summary": {
            "seconds": 1e999, "poller_share": 0, "cores": 2, "phases": {}, "measured": "train", "gpus": [
                {"record": {"prefix": HOSTILE, "gpu": {"index": 0, "name": HOSTILE}, "lost": HOSTILE,
                            "missing": {HOSTILE: HOSTILE}, "errors": {HOSTILE: 1}}, "statistics": {}},
            ],
            "host": {HOSTILE: {"label": HOSTILE, "unit": HOSTILE} | dict.fromkeys(figures, 1)},
            "failure": HOSTILE,
        },
        "diagnosis": {"verdict": "unknown", "advice": [HOSTILE], "gpu": 7},
        "absence": "not_shown", "absence_detail": HOSTILE,
    }  # fmt: skip
    (folder / "gpu.json").write_text(json.dumps(report))
    for options in ([], ["--json"]):
        result = fastae("gpu", folder, *options)
        assert result.returncode == 0, result.stderr
        assert all(character.isprintable() or character == "\n" for character in result.stdout)
    report["summary"]["host"][HOSTILE]["mean"] = "much"
    (folder / "gpu.json").write_text(json.dumps(report))
    with pytest.raises(FastaeError, match="Expected `float`, got `str`"):
        read_report(folder)


def test_what_is_written_replaces_no_device(tmp_path, face_folder):
    """To anybody who may rename there (root), a file that takes the place of /dev/null is the end of much."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FastaeError, match="pipe': it is not a file"):
        check_folder(str(face_folder), deep=False, crop=None, report=str(tmp_path / "pipe"))
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["iterations", "lr", "brightness", "seed", "minutes"])
def test_a_setting_of_400_digits_is_one_line(name):
    with pytest.raises(FastaeError, match=f"config.json: .*{name}"):
        TrainConfig.from_dict({name: 10**400}, "config.json")
