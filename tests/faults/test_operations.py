"""A fault at each file operation of a command. What its message names, or the same command, completes it.

The end is compared with an undisturbed one: files, weights, moments, metrics without times. `make soak` puts
each of four faults at each operation. `make test` puts one of them at each operation of the QUICK cases.
"""

import hashlib
import os
import re
import shlex
import shutil
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import pytest

from fastae.data.faces import synthetic as faces
from fastae.runs.tensors import read_tensors

from . import forks
from .forks import FAULTS

SOAK = bool(os.environ.get("FASTAE_SOAK"))
SMALL = (
    "--image-size 16 --latent 4 --batch-size 4 --no-compile --gpu-sample-hz 0 --eval-images 2 --threads 1 "
    "--log-every 1 --eval-every 2 --checkpoint-every 1 --keep 1 --data ../../data"
)
NEW = f"train --out run --iterations 2 --loader dali {SMALL}"
RESIDENT = f"train --out run --iterations 1 --loader resident --cache-dir cache {SMALL}"
CASES = {
    "new run": ("nothing", NEW, ""),
    "resumed run": ("killed", "train --resume run", ""),
    "finished run": ("incomplete", "train --resume run", ""),
    "sweep": (
        "nothing",
        NEW.replace("train --out run", "sweep --losses pixel_mse,pixel_bce --out sweep"),
        "",
    ),
    "cache": ("nothing", RESIDENT, "cache/"),
    "monitor": ("nothing", NEW.replace("--gpu-sample-hz 0", "--gpu-sample-hz 50"), r"run/(\.partial-)?gpu"),
    "prepare": ("archive", "prepare celeba archive.zip --out celeba --count 2", ""),
    "report": ("run", "report run", ""),
    "export": ("run", "export run --out new", ""),
    "reconstruct": ("run", "reconstruct run ../../data/000001.jpg --out new", ""),
    "cache clear": ("cache", "cache clear --yes --cache-dir cache", ""),
}
"""Name -> what the folder holds, the command, and how the paths begin at which a fault is put."""

QUICK = ("new run", "finished run", "prepare", "reconstruct", "cache clear")
"""The cases of `make test`, which take about a second per fault."""


@dataclass
class Case:
    """A folder in which commands are run."""

    path: Path

    def run(self, words, at=None, fault=""):
        """Runs a command in the folder `here`; returns its exit code."""
        return forks.run(words, self.path / "here", self.path / "log", at, fault)

    @property
    def errors(self):
        return (self.path / "log.err").read_text()

    @property
    def operations(self):
        return (self.path / "log.operations").read_text().splitlines()


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """A function that makes a case whose folder holds what a template does. Each template is made once."""
    base = tmp_path_factory.mktemp("operations")
    numbers = iter(range(10**6))
    (base / "data").mkdir()
    faces.write(base / "data", 12)

    def begin(template):
        case = Case(base / str(next(numbers)))
        shutil.copytree(base / template / "here", case.path / "here")
        return case

    def make(template, command="", at=None, fault="", result=0):
        case = Case(base / template)
        (case.path / "here").mkdir(parents=True)
        assert not command or case.run(command.split(), at, fault) == result, case.errors
        return case.path / "here"

    make("nothing")
    run = make("run", NEW)
    make("cache", RESIDENT)
    save = "write run/checkpoints/.partial-0000003.safetensors 1"
    make("killed", NEW.replace("--iterations 2", "--iterations 4"), save, "SIGKILL", -9)
    # Killed when its last checkpoint was written, but neither its weights were nor an older one removed.
    checkpoints = shutil.copytree(run, base / "incomplete" / "here") / "run" / "checkpoints"
    shutil.copy(checkpoints / "0000002.safetensors", checkpoints / "0000001.safetensors")
    (checkpoints.parent / "model.safetensors").unlink()
    with zipfile.ZipFile(make("archive") / "archive.zip", "w") as archive:
        for name in ("000001.jpg", "000002.jpg"):
            archive.write(base / "data" / name, f"img_align_celeba/{name}")
    return begin


def content(folder):
    """Returns path -> what must be equal in each file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith(("events.", "gpu")):
            continue  # each session has files of its own; the monitor's do not matter
        if path.suffix == ".safetensors":
            tensors = read_tensors(path).tensors
            found[name] = {key: value.numpy().tobytes() for key, value in tensors.items()}
        elif path.name == "metrics.csv":
            rows = [row.split(",") for row in path.read_text().splitlines()]
            found[name] = [row[:4] + row[8:] for row in rows]
        elif path.suffix in (".png", ".jpg", ".npy", ".onnx") or path.name == "images.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = path.is_dir() or path.stat().st_size > 0
    return found


def final_content(case):
    """Returns the content of a case's folder without its cache, which must be removed without a rest.

    A cache that cannot be written is not used.
    """
    if (case.path / "here" / "cache").exists():
        assert case.run(CASES["cache clear"][1].split()) == 0, case.errors
    return content(case.path / "here")


def next_command(words, code, case):
    """Returns the words of the command that completes what a fault has ended."""
    _, names_resume, command = case.errors.partition("resume with: ")
    if names_resume:
        return shlex.split(command)[1:]
    if code < 0 and words[0] == "train" and (case.path / "here" / "run" / "config.json").exists():
        return ["train", "--resume", "run"]
    if words[-1] == "new" and "name a new folder" in case.errors:
        shutil.rmtree(case.path / "here" / "new")
    return words


def outcome(case, words, at, fault, expected):
    """Runs a command with a fault, and what completes it. Returns what is wrong; None if nothing is."""
    for number in range(4):
        code = case.run(words, at if number == 0 else None, fault)
        if number == 0 and at not in case.operations:
            return "not reached"
        if code == 0:
            found = final_content(case)
            differing = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
            return f"differs: {sorted(differing)}" if differing else None
        lines = case.errors.splitlines()
        # A sweep, and `prepare`, name what failed on stdout.
        if code is None or len(lines) > 1 or (lines and not lines[0].startswith("fastae: ")):
            return f"exit code {code}: {case.errors[-2000:]}"
        words = next_command(words, code, case)
    return f"never completed: {case.errors}"


@pytest.mark.parametrize("name", CASES if SOAK else QUICK)
def test_a_fault_at_any_file_operation_is_survived(begin, name):
    template, command, beginning = CASES[name]
    whole = begin(template)
    assert whole.run(command.split()) == 0, whole.errors
    operations = [each for each in whole.operations if re.match(beginning, each.split(" ", 1)[1])]
    expected = final_content(whole)
    tried = list(product(operations, FAULTS))
    if not SOAK:  # one for each operation that differs by more than a number or a loss
        different = {re.sub(r"\d+|mse|bce", "", each): each for each in operations}
        tried = list(zip(different.values(), cycle(FAULTS)))

    def attempt(tried):
        case = begin(template)
        wrong = outcome(case, command.split(), *tried, expected)
        if wrong is None:
            shutil.rmtree(case.path)
        return wrong

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wrong = dict(zip(tried, pool.map(attempt, tried), strict=True))
    broken = {" ".join(each): why for each, why in wrong.items() if why and why != "not reached"}
    counts = Counter(why for why in wrong.values())
    print(f"{name}: {len(operations)} operations, {len(tried)} faults, {counts['not reached']} not reached")
    assert counts["not reached"] <= max(1, len(tried) // 10), "too many of the operations did not occur again"
    assert not broken, "\n".join(f"{each}: {why}" for each, why in broken.items())
