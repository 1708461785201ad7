"""The monitor of a real run without a GPU, and of a simulated loop with recorded GPUs."""

import csv
import gzip
import io
import json
import time
from contextlib import redirect_stdout, suppress
from types import SimpleNamespace

import pynvml
import pytest
import torch

from fastae.monitor import monitor as module
from fastae.monitor.files import read_report
from fastae.monitor.loop_timer import Timing
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo

from ..commands import SMALL, curve, here, refuses
from .recorded_nvml import BUSY, FALLS_OFF_THE_BUS, HALF_BUSY, machine_of, mig_machine

INFO = RunInfo("dali", compiled=False, amp=False, batch_size=4)


@pytest.fixture(scope="module")
def run(face_folder, tmp_path_factory):
    """A run on the CPU, with a trace of three steps, and its output."""
    out = tmp_path_factory.mktemp("monitored") / "run"
    with redirect_stdout(io.StringIO()) as output:
        here("train", "--data", face_folder, "--out", out, *SMALL, "--device", "cpu", "--iterations", 30,
             "--log-every", 5, "--eval-every", 30, "--gpu-sample-hz", 50, "--profile", 3)  # fmt: skip
    return out, output.getvalue()


def test_a_run_without_a_gpu_logs_one_line_with_the_command_for_more(run):
    out, output = run
    (line,) = (line for line in output.splitlines() if line.startswith("usage "))
    assert line.endswith(f"fastae gpu {out}") and "GPU" not in line
    report = read_report(out)
    assert report.missing == "" and report.summary.gpus == ()
    assert report.summary.images_per_second > 0
    assert 0 < report.summary.data_wait < 1 and report.summary.device_wait is None
    assert report.summary.tflops > 0 and report.summary.mfu is None, "the peak of a CPU is unknown"
    assert set(report.summary.phases) >= {Phase.WARM_UP, Phase.TRAIN, Phase.EVAL, Phase.SAVE}
    header, *lines = csv.reader((out / "gpu.csv").open())
    assert header[:2] == ["time [s]", "phase"] and "loop/data_wait [%]" in header and len(lines) > 3
    assert (out / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("**/*partial*"))


def test_a_run_has_a_table_a_trace_and_curves(run, capsys):
    out, output = run
    assert not here("gpu", out) and "\nverdict " in capsys.readouterr().out
    lines = output.splitlines()
    start = lines.index(f"profile   {out}/trace.json.gz")
    assert all("%" in line and " ms " in line for line in lines[start + 1 : start + 11])
    assert "FLOP/s" in output and "\npeak memory " in output
    events = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))["traceEvents"]
    steps = [each for each in events if each.get("name") == "Optimizer.step#Adam.step"]
    assert len(steps) == 3 and len(events) > 100
    assert curve(out, "utilisation/host memory (GiB)") and curve(out, "utilisation/host CPU (cores)")


def test_without_sampling_there_is_no_report(small_run, tmp_path):
    assert not list(small_run.glob("gpu.*")), "it used --gpu-sample-hz 0"
    assert "--gpu-sample-hz 0" in refuses("gpu", small_run)
    assert "missing" in refuses("gpu", tmp_path / "missing")
    assert "--gpu-sample-hz" in refuses("train", "--gpu-sample-hz", "-1")


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interrupted_run_has_its_report_if_it_had_begun(tmp_path, has_begun):
    with suppress(KeyboardInterrupt), Monitor(tmp_path, 50, [], INFO) as monitor:
        monitor.enter(Phase.TRAIN if has_begun else Phase.COMPILE)
        raise KeyboardInterrupt
    assert (tmp_path / "gpu.json").exists() is has_begun


def watched(folder, library, gpus, info=INFO):
    """Monitors a simulated loop on a recorded machine, and returns the report."""
    with Monitor(folder, 50, gpus, info, library) as monitor:
        monitor.enter(Phase.TRAIN)
        time.sleep(0.05)
        monitor.record(Timing(64, 1.0, 0.0, 1.0, 1.0, time.monotonic()))
        monitor.means()
    return read_report(folder)


def test_the_gpu_of_the_run_is_sampled(tmp_path, capsys):
    library = machine_of(BUSY, HALF_BUSY)
    (gpu,) = watched(tmp_path, library, ["1"]).summary.gpus
    assert gpu.record.gpu.uuid == "GPU-1" and gpu.mean("gpu_busy") == 55
    assert library.opened == library.allocated == 0 < library.calls["nvmlEventSetCreate"]
    assert "55%" in capsys.readouterr().out


def test_the_faults_of_a_gpu_are_logged_at_the_end_of_the_run(tmp_path, capsys):
    watched(tmp_path, machine_of(FALLS_OFF_THE_BUS[-2:]), ["0"])
    *troubles, usage = capsys.readouterr().out.splitlines()
    assert usage.startswith("usage ") and all(line.startswith("trouble ") for line in troubles)
    assert any("XID 45, 79" in line for line in troubles) and any("GPU_IS_LOST" in line for line in troubles)


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (mig_machine(), "does not show"),  # another slice must not replace it
        (machine_of(absent=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), "NVML_ERROR_LIBRARY_NOT_FOUND"),
    ],
)
def test_a_gpu_that_nvml_does_not_show_is_reported_as_missing(tmp_path, library, words):
    report = watched(tmp_path, library, ["board"])
    assert words in report.missing and report.summary.gpus == ()


@pytest.mark.parametrize(("ranks", "found"), [(1, ["uuid 3"]), (4, [f"uuid {index}" for index in range(4)])])
def test_a_run_has_one_gpu_or_those_of_all_local_ranks(monkeypatch, ranks, found):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # under torchrun, a sweep has runs of one rank each
    properties = lambda index: SimpleNamespace(uuid=f"uuid {index}")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_gpus(torch.device("cuda", 3), ranks) == found
    assert local_gpus(torch.device("cpu"), ranks) == []


@pytest.mark.parametrize("broken", ["Poller", "HostReader", "summarize", "write_report"])
def test_a_failure_of_the_monitor_does_not_end_the_run(monkeypatch, tmp_path, capsys, broken):
    def breaks(*arguments, **options):
        raise RuntimeError("a surprise")

    monkeypatch.setattr(module, broken, breaks)
    with pytest.raises(Exception, match=r"has no gpu.json"):
        watched(tmp_path, machine_of(BUSY), ["0"])
    assert "a surprise" in capsys.readouterr().out and not list(tmp_path.iterdir())
