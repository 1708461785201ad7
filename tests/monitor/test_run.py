"""The report as a user meets it on a machine without a GPU: real runs, and the commands."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pynvml
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastae.monitor.diagnosis import RunInfo
from fastae.monitor.monitor import Monitor

from ..commands import SMALL, fastae
from ..test_cli import refused
from .recorded_nvml import LAUNCH_BOUND, Card, RecordedNvml

ON_CPU = [*SMALL, "--device", "cpu"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # more of them wait for each other where other programs run as well


@pytest.fixture(scope="module")
def watched(face_folder, tmp_path_factory):
    """A run on the CPU, long enough for a training phase of its own."""
    out = tmp_path_factory.mktemp("watched") / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, *ON_CPU, "--iterations", 60,
        "--log-every", 10, "--eval-every", 60, "--gpu-sample-hz", 50,
        **ONE_THREAD,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return out, result


def test_a_run_without_a_gpu_reports_the_host_and_says_so(watched):
    out, result = watched
    assert "utilisation of the host alone (the run is on the CPU)" in result.stdout
    assert "\nverdict   " in result.stdout
    assert f"\nreport    {out}/gpu.png, gpu.csv, gpu.json; again: fastae gpu {out}\n" in result.stdout
    report = json.loads((out / "gpu.json").read_text())
    assert report["note"] == "the run is on the CPU" and report["summary"]["gpus"] == []
    assert report["summary"]["images_per_second"] > 0 and report["summary"]["errors"] == []
    assert set(report["summary"]["phases"]) >= {"eval", "warm-up", "train"}
    header, *lines = csv.reader((out / "gpu.csv").open())
    assert header[:3] == ["time [s]", "phase", "host/cpu [cores]"] and len(lines) > 10
    assert (out / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("**/*.partial"))


def test_the_report_again(watched):
    out, result = watched
    again = fastae("gpu", out)
    assert again.returncode == 0 and again.stdout in result.stdout
    assert json.loads(fastae("gpu", out, "--json").stdout) == json.loads((out / "gpu.json").read_text())


def test_the_series_are_in_tensorboard(watched):
    events = EventAccumulator(str(watched[0]))
    events.Reload()
    assert events.Scalars("host/cpu") and events.Scalars("host/memory")
    assert all(event.value >= 0 for event in events.Scalars("host/cpu"))


def test_off_leaves_nothing(face_folder, tmp_path):
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, *ON_CPU, "--iterations", 1, "--gpu-sample-hz", 0,
        **ONE_THREAD,
    )  # fmt: skip
    assert result.returncode == 0 and "utilisation" not in result.stdout
    assert not list(out.glob("gpu.*"))
    assert refused(fastae("gpu", out), "has no gpu.json", "--gpu-sample-hz 0")


def test_an_interrupted_run_has_its_report(face_folder, tmp_path):
    command = [sys.executable, "-m", "fastae", "train", "--data", face_folder, "--out", tmp_path / "run",
               *ON_CPU, "--log-every", "5"]  # fmt: skip
    run = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    )
    for line in run.stdout:
        if "5/100,000" in line:
            break
    run.send_signal(signal.SIGINT)
    run.stdout.read()
    assert run.wait(30) == 130
    assert {path.name for path in (tmp_path / "run").glob("gpu.*")} == {"gpu.json", "gpu.csv", "gpu.png"}


def test_a_wrong_rate(tmp_path):
    assert refused(fastae("train", "--gpu-sample-hz", "-1"), "--gpu-sample-hz must be 0 or more, not -1")
    assert refused(fastae("gpu", tmp_path / "missing"), "missing' is not a run's folder")


@pytest.mark.parametrize("arguments", [[], ["--once"], ["--once", "--json"], ["--", "echo", "--once"]])
def test_the_commands_without_a_driver(arguments):
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert refused(fastae("gpu", *arguments), "NVIDIA driver")
    else:
        pynvml.nvmlShutdown()
        pytest.skip("there is a driver")


INFO = RunInfo("dali", compiled=False, amp=False, batch_size=4)


def test_a_watch_finds_the_runs_gpu(monkeypatch, tmp_path, capsys):
    machine = RecordedNvml(Card(LAUNCH_BOUND, uuid="GPU-1"), Card(LAUNCH_BOUND, uuid="GPU-2", index=1))
    monkeypatch.setattr("fastae.monitor.monitor.open_nvml", lambda: machine)
    with Monitor(tmp_path, 50, "GPU-2", INFO) as monitor:
        time.sleep(0.1)
        assert monitor.means()["gpu0/utilisation"] == 55
    assert "utilisation of NVIDIA H100" in capsys.readouterr().out
    (gpu,) = json.loads((tmp_path / "gpu.json").read_text())["summary"]["gpus"]
    assert gpu["uuid"] == "GPU-2"


def test_a_watch_never_harms_its_run(monkeypatch, tmp_path, capsys):
    def breaks(*arguments):
        raise RuntimeError("a surprise")

    done = []
    for seam in ("open_nvml", "HostReader", "make_report", "write_report"):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastae.monitor.monitor.{seam}", breaks)
            with Monitor(tmp_path, 50, "GPU-1", INFO) as monitor:
                monitor.enter("train")
                monitor.record(64, 1.0, 0.0)
                monitor.means()
                done.append(seam)
        assert "watching  no GPU report: a surprise" in capsys.readouterr().out
    assert len(done) == 4 and not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_costs_the_report_alone(tmp_path, capsys):
    with Monitor(tmp_path / "gone", 50, None, INFO):
        time.sleep(0.05)
    assert "no GPU report: [Errno 2]" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
