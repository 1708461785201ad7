"""The monitor beside a run: real runs without a GPU, and recorded GPUs beside a pretended loop."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastae.monitor.files import read_report
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Absence, Phase
from fastae.monitor.summary import RunInfo

from ..commands import SMALL, fastae
from ..test_cli import refused
from .recorded_nvml import BUSY, LAUNCH_BOUND, Card, RecordedNvml, mig_machine

ON_CPU = [*SMALL, "--device", "cpu"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # more of them wait for each other where other programs run as well
INFO = RunInfo("dali", compiled=False, amp=False, batch_size=4)


@pytest.fixture(scope="module")
def run(face_folder, tmp_path_factory):
    """A run on the CPU, with a trace of three steps."""
    out = tmp_path_factory.mktemp("monitored") / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, *ON_CPU, "--iterations", 60,
        "--log-every", 10, "--eval-every", 60, "--gpu-sample-hz", 50, "--profile", 3,
        **ONE_THREAD,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return out, result


def test_a_run_without_a_gpu_has_one_line_and_names_the_command_for_more(run):
    out, result = run
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("usage "))
    assert line.endswith(f"fastae gpu {out}")
    assert "GPU" not in line
    report = read_report(out)
    assert report.absence is Absence.CPU_RUN and report.summary.gpus == ()
    assert report.summary.images_per_second > 0 and report.summary.failure is None
    assert 0 < report.summary.data_wait < 1 and 0 <= report.summary.device_wait < 0.1
    assert set(report.summary.phases) >= {Phase.WARM_UP, Phase.TRAIN, Phase.EVAL}
    header, *lines = csv.reader((out / "gpu.csv").open())
    assert header[:2] == ["time [s]", "phase"] and "loop/data_wait [%]" in header and len(lines) > 3
    assert (out / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("**/*partial*"))


def test_the_table_of_a_run(run):
    out, _ = run
    table = fastae("gpu", out)
    assert table.returncode == 0 and "\nverdict " in table.stdout
    assert json.loads(fastae("gpu", out, "--json").stdout) == json.loads((out / "gpu.json").read_text())


def test_the_trace_of_some_steps(run):
    import gzip

    out, result = run
    assert f"profile   {out}/trace.json.gz" in result.stdout
    events = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))["traceEvents"]
    steps = [each for each in events if each.get("name") == "Optimizer.step#Adam.step"]
    assert len(steps) in (0, 3) and len(events) > 100


def test_the_columns_are_in_tensorboard(run):
    events = EventAccumulator(str(run[0]))
    events.Reload()
    assert events.Scalars("host/memory") and all(event.value >= 0 for event in events.Scalars("host/cpu"))


def test_off_leaves_nothing(face_folder, tmp_path):
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, *ON_CPU, "--iterations", 1, "--gpu-sample-hz", 0,
        **ONE_THREAD,
    )  # fmt: skip
    assert result.returncode == 0 and "usage " not in result.stdout
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


def test_a_wrong_rate_or_folder(tmp_path):
    assert refused(fastae("train", "--gpu-sample-hz", "-1"), "--gpu-sample-hz", "-1")
    assert refused(fastae("gpu", tmp_path / "missing"), "missing' is not a run's folder")


@pytest.fixture
def library(monkeypatch):
    """Beside a pretended loop on this recorded machine."""

    def be(library):
        def open_nvml():
            library.nvmlInit()
            return library

        monkeypatch.setattr("fastae.monitor.monitor.open_nvml", open_nvml)
        return library

    return be


def test_the_gpu_of_the_run_is_sampled(library, tmp_path, capsys):
    machine = library(RecordedNvml(Card(BUSY, uuid="GPU-1"), Card(LAUNCH_BOUND, uuid="GPU-2", index=1)))
    with Monitor(tmp_path, 50, ["2"], INFO) as monitor:
        monitor.enter(Phase.TRAIN)
        time.sleep(0.1)
        monitor.record(64, 1.0, 0.0, 0.0)
        assert monitor.means()["gpu0/gpu_busy"] == 55
    (gpu,) = read_report(tmp_path).summary.gpus
    assert gpu.record.gpu.uuid == "GPU-2" and machine.opened == 0
    assert "55 %" in capsys.readouterr().out


def test_all_gpus_of_several_ranks_are_sampled(library, tmp_path):
    library(RecordedNvml(*(Card(BUSY, uuid=f"GPU-{place}", index=place) for place in range(3))))
    info = RunInfo("dali", compiled=False, amp=False, batch_size=4, ranks=2)
    for gpus, is_known in ((["1", "2"], True), (["1"], False)):
        with Monitor(tmp_path, 50, gpus, info) as monitor:
            time.sleep(0.05)
            monitor.record(64, 1.0, 0.0, 0.0)
        summary = read_report(tmp_path).summary
        assert [gpu.record.gpu.uuid[4:] for gpu in summary.gpus] == gpus
        assert (summary.images_per_joule is not None) is is_known, "energy needs all GPUs of the job"


def test_a_gpu_that_nvml_does_not_show_is_not_replaced_by_another(library, tmp_path):
    library(mig_machine())
    with Monitor(tmp_path, 50, ["board"], INFO):
        time.sleep(0.02)
    report = read_report(tmp_path)
    assert report.absence is Absence.NOT_SHOWN and report.summary.gpus == ()


@pytest.mark.parametrize(("ranks", "found"), [(1, ["uuid 3"]), (4, [f"uuid {place}" for place in range(4)])])
def test_the_gpus_of_a_run(monkeypatch, ranks, found):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # a sweep under torchrun: several runs of one rank each
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda place: SimpleNamespace(uuid=f"uuid {place}")
    )
    assert local_gpus(torch.device("cuda", 3), ranks) == found
    assert local_gpus(torch.device("cpu"), ranks) == []


def test_cuda_without_nvml(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "fastae.monitor.monitor.open_nvml",
        lambda: open_missing(RecordedNvml(absent=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)),
    )
    from fastae.monitor.nvml import open_nvml as open_missing

    with Monitor(tmp_path, 50, ["1"], INFO):
        time.sleep(0.02)
    report = read_report(tmp_path)
    assert report.absence is Absence.NO_NVML and report.absence_detail == "NVML_ERROR_LIBRARY_NOT_FOUND"


@pytest.mark.parametrize("broken", ["open_nvml", "HostReader", "summarize", "write_report"])
def test_the_monitor_never_harms_its_run(monkeypatch, tmp_path, capsys, library, broken):
    library(RecordedNvml(Card(BUSY, uuid="GPU-1")))

    def breaks(*arguments, **options):
        raise RuntimeError("a surprise")

    monkeypatch.setattr(f"fastae.monitor.monitor.{broken}", breaks)
    with Monitor(tmp_path, 50, ["1"], INFO) as monitor:
        monitor.enter(Phase.TRAIN)
        monitor.record(64, 1.0, 0.0, 0.0)
        monitor.means()
    assert "a surprise" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_costs_the_report_alone(tmp_path, capsys):
    with Monitor(tmp_path / "gone", 50, [], INFO):
        time.sleep(0.02)
    assert "Errno 2" in capsys.readouterr().out and not list(tmp_path.iterdir())
