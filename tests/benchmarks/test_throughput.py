"""The harness itself: figures, isolation, records, comparison; a whole quick run of one section."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import loaders, record, steps
from benchmarks.measure import Figure, isolated
from fastae.errors import FastaeError


def result(**changes):
    rate = {"unit": "images/s", "median": 100.0, "low": 90.0, "high": 110.0, "repeats": 5}
    return {
        "date": "2026-01-01",
        "command": "python -m benchmarks.throughput",
        "device": "A card, 2 threads",
        "environment": {"commit": "abc"},
        "loaders": {"fastae resident": {"rate": rate}, "tf.data": {"absent": "not installed"}},
        "steps": {
            "plain float32": {"rate": rate},
            "+ AMP": {"rate": rate | {"median": 200.0, "high": 210.0}},
        },
        "budget": "six runs in 1.0 h, 30x the article's speed",
    } | changes


def test_a_figure_is_a_median_with_its_spread():
    assert Figure.of([3, 1, 2], "images/s") == Figure("images/s", 2, 1, 3, 3)


def test_a_record_is_written_whole_and_read_back(tmp_path):
    folder = tmp_path / "records" / "2026-01-01_card"
    record.save(folder, result(), ["the page"], "the log")
    assert record.load(folder)["steps"]["+ AMP"]["rate"]["median"] == 200
    assert "the page" in (folder / "README.md").read_text()
    assert (folder / "log.txt").read_text() == "the log"
    assert Image.open(folder / "chart.png").width > 500
    (tmp_path / "README.md").write_text("x\n<!-- records -->\nold\n<!-- end of records -->\ny\n")
    record.index(tmp_path / "records")
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and "[2026-01-01_card](records/2026-01-01_card/README.md)" in text
    assert "200 images/s" in text and text.endswith("y\n")


def test_compares_with_the_same_hardware_alone():
    newer = result(steps={"+ AMP": {"rate": {"median": 300.0}}})
    assert any("1.50x" in line for line in record.compare(newer, result()))
    with pytest.raises(FastaeError, match="no comparison"):
        record.compare(newer, result(device="another"))


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(FastaeError, match="is no benchmark record"):
        record.load(tmp_path)


def test_a_variant_that_fails_does_not_end_the_others():
    logged = []
    found = isolated("benchmarks.steps", ["--one", "nonsense"], logged.append)
    assert found["absent"].startswith("failed: ")
    assert "nonsense" in logged[0]


def test_an_error_in_a_group_of_errors_is_the_reason(tmp_path):
    (tmp_path / "group.py").write_text("raise ExceptionGroup('all', [RuntimeError('a stage failed')])")
    found = isolated("group", [], print, PYTHONPATH=str(tmp_path))
    assert found == {"absent": "failed: RuntimeError: a stage failed"}


HANGS = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
time.sleep(600)
"""


def test_a_variant_that_hangs_ends_with_its_workers_and_is_absent(tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    logged = []
    found = isolated("hangs", [], logged.append, limit=3, PYTHONPATH=str(tmp_path))
    assert found == {"absent": "no answer in 3 s"}
    assert loaders.lines({"SPDL": found})[0].endswith("absent: no answer in 3 s")
    worker = int(logged[-1].split()[1])
    status = Path(f"/proc/{worker}/stat")
    deadline = time.monotonic() + 5  # SIGKILL is sent by then, but the kernel takes its moment

    def ended():
        try:
            return ") Z " in status.read_text()
        except OSError:
            return True

    while not ended():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_absent_variants_are_shown_with_the_reason():
    shown = loaders.lines(
        {"fastae dali": {"rate": result()["steps"]["+ AMP"]["rate"]}, "tf.data": {"absent": "not installed"}}
    )
    assert "200 images/s" in shown[0] and shown[1].endswith("absent: not installed")
    assert steps.measure("+ CUDA graph", 8, 1, "cpu") == {"absent": "needs a CUDA device"}


def test_a_variant_that_trains_otherwise_is_found():
    plain = {"losses": [0.7, 0.6, 0.5]}
    near, far = {"losses": [0.701, 0.601, 0.5]}, {"losses": [0.7, 0.6, 0.52]}
    assert steps.disagreements({"plain float32": plain, "+ AMP": near}) == []
    (found,) = steps.disagreements({"plain float32": plain, "+ AMP": far})
    assert found.startswith("+ AMP trains otherwise")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_section_of_a_quick_run_makes_a_record(tmp_path):
    out = tmp_path / "record"
    done = run("--only", "roofline", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "predictions, not measurements" in done.stdout
    assert json.loads((out / "result.json").read_text())["environment"]["python"]


def test_a_wrong_section_is_one_line():
    done = run("--only", "roofline,speed")
    assert done.returncode == 2
    assert done.stderr == (
        "throughput: error: --only: speed is not among loaders, steps, endtoend, roofline\n"
    )


def test_a_loader_is_measured_on_real_files(face_paths, tmp_path):
    for number in range(100):
        os.link(face_paths[number % 40], tmp_path / f"{number:03d}.jpg")
    found = loaders.measure("fastae resident", str(tmp_path), threads=1, batches=1, device="cpu")
    assert found["rate"]["repeats"] == 5 and found["rate"]["low"] > 0
    assert found["images"] == 95
