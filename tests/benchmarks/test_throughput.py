"""The harness itself: figures, isolation, records, budget; a quick run of one section."""

import json
import math
import os

import pytest
from PIL import Image

from benchmarks import endtoend, loaders, peers, record, steps, throughput
from benchmarks.measure import isolated
from benchmarks.peers import Work
from fastae.errors import FastaeError

from ..commands import wait_until_ended

RATE = {"unit": "images/s", "median": 100.0, "low": 90.0, "high": 110.0, "repeats": 5}


def result(**changes):
    faster = RATE | {"median": 200.0, "high": 210.0}
    return {
        "date": "2026-01-01",
        "command": "python -m benchmarks.throughput",
        "device": "A card, 2 threads",
        "environment": {"commit": "abc"},
        "loaders": {"fastae resident": {"rate": RATE}, "tf.data": {"absent": "not installed"}},
        "steps": {"plain float32": {"rate": RATE}, "+ AMP": {"rate": faster}},
        "budget": {"at_once": 1, "step": 3600.0},
    } | changes


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
    with pytest.raises(FastaeError, match="nowhere"):
        record.load(tmp_path / "nowhere")


MISBEHAVES = """
import subprocess, sys, time
def fails():
    raise ExceptionGroup('all', [RuntimeError('a stage failed')])
def hangs():
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("worker", worker.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("variant", "limit", "reason"),
    [("fails", 900, "failed: RuntimeError: a stage failed"), ("hangs", 3, "no answer in 3 s")],
)
def test_a_variant_that_fails_or_hangs_is_absent_and_its_workers_end(tmp_path, variant, limit, reason):
    (tmp_path / "misbehaves.py").write_text(MISBEHAVES)
    logged = []
    found = isolated(f"misbehaves:{variant}", {}, logged.append, limit, PYTHONPATH=str(tmp_path))
    assert found == {"absent": reason} and f"misbehaves:{variant}" in logged[0]
    assert loaders.lines({"tf.data": found})[0].endswith(reason)
    if variant == "hangs":
        wait_until_ended(logged[-1].split()[1])


def test_a_variant_that_needs_a_gpu_is_absent_without_one():
    assert "absent" in steps.measure("+ CUDA graph", 8, 0, "cpu")


def test_a_variant_that_trains_otherwise_is_found():
    plain = {"losses": [0.7, 0.6, 0.5]}
    near, far = {"losses": [0.701, 0.601, 0.5]}, {"losses": [0.7, 0.6, 0.52]}
    assert steps.disagreements({"plain float32": plain, "+ AMP": near}) == []
    for other in (far, {"losses": [0.7, math.nan, math.nan]}):
        (found,) = steps.disagreements({"plain float32": plain, "+ AMP": other})
        assert "+ AMP" in found


def test_the_budget_adds_up_what_the_six_runs_take():
    """Of two loaders the faster; a batch of 32 counts half."""

    def found(step):
        windows = {kind: {"images_per_second": 32 / s} for kind, s in (("fixed", 0.01), ("loader", step))}
        return windows | {"evaluation": 2.0, "checkpoint": 0.5}

    results = {"dali": found(0.02), "resident": found(0.011), "host": {"absent": "no GPU"}}
    parts = endtoend.budget(results, batch_size=32)
    assert parts == pytest.approx(
        {"step": 12_000, "loader": 1_200, "evaluations": 1_200, "checkpoints": 11.0}
    )
    assert "six runs in 4.0 h" in endtoend.budget_lines(parts)[-1]
    assert endtoend.budget({"host": {"absent": "no GPU"}}, 64) == {}


def test_one_section_of_a_quick_run_makes_a_record(tmp_path, capsys):
    arguments = ["--only", "roofline", "--quick", "--out", str(tmp_path / "record")]
    throughput.main(arguments, standalone_mode=False)
    assert "prediction" in capsys.readouterr().out
    assert json.loads((tmp_path / "record" / "result.json").read_text())["environment"]["python"]
    assert {path.name for path in (tmp_path / "record").iterdir()} == {"README.md", "log.txt", "result.json"}
    assert "chart.png" not in (tmp_path / "record" / "README.md").read_text()


def test_a_wrong_section_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        throughput.main(["--only", "roofline,speed"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "speed" in error


def test_loaders_are_measured_on_real_files_and_what_they_do_not_do_is_shown(
    face_paths, tmp_path, monkeypatch
):
    monkeypatch.setattr(loaders, "WARM_UP", 1)
    monkeypatch.setattr(loaders, "CHUNK", 1)
    for number in range(100):
        os.link(face_paths[number % 40], tmp_path / f"{number:03d}.jpg")
    found = {
        name: loaders.measure(name, str(tmp_path), threads=1, seconds=0, device="cpu")
        for name in ("fastae dali", "plain DALI")
    }
    for each in found.values():
        assert each["rate"]["repeats"] == 5 and each["rate"]["low"] > 0 and each["busy"] > 0
        assert each["images"] == 95
    page = "\n".join(loaders.lines(json.loads(json.dumps(found))))
    assert all(f"does not {work}" in page for work in peers.PEERS["plain DALI"].does_not)
    assert Work.DECODING not in page


def test_the_real_step_is_measured_with_each_loader(face_folder, monkeypatch):
    for name, value in (("EVALUATED", 4), ("WARM_UP", 1)):
        monkeypatch.setattr(endtoend, name, value)
    found = endtoend.measure("resident", str(face_folder), 4, 1, "cpu", compiled=False)
    assert found["fixed"]["step_p50"] > 0 and found["evaluation"] > 0 and found["checkpoint"] > 0
    assert endtoend.budget({"resident": found}, 4)["step"] > 0
