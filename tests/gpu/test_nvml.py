"""The monitor against the real card and driver: a known load, energy both ways, verdicts, cost.

Three programs whose verdict is known: one that waits for its data, one of many small kernels, one of large
matrix products.
"""

import itertools
import os
import sys
import time

import numpy as np
import pytest
import torch

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report
from fastae.monitor.host import HostReader
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.nvml import gpu_of_cuda, open_nvml
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Phase
from fastae.monitor.summary import EnergySource, RunInfo, Verdict, summarize

from ..commands import fastae

pytestmark = pytest.mark.usefixtures("real_gpu")

SECONDS = 20.0
"""Long enough for ten readings of what is read once a second."""


@pytest.fixture(scope="module")
def device(cuda):
    (uuid,) = local_gpus(cuda)
    library = open_nvml()
    found = gpu_of_cuda(library, uuid, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if found is None:
        pytest.skip("NVML does not show the GPU that CUDA uses")
    yield found
    library.nvmlShutdown()


def recorded(device, work):
    import pynvml

    poller = Poller(HostReader(os.getpid()), 10, pynvml, lambda library: [device], None)
    poller.start()
    poller.enter(Phase.TRAIN)
    work()
    poller.stop()
    recording = poller.recording()
    assert recording.failure is None and recording.absence is None
    return recording


def matrices(cuda, size=8192):
    return torch.randn(size, size, device=cuda, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def under_load(device, cuda):
    """Large matrix products without a pause."""
    matrix = matrices(cuda)

    def multiply():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()

    return recorded(device, multiply)


def test_the_gpu_of_pytorch_is_found(device, cuda):
    gpu, _ = device
    assert gpu.is_slice or gpu.name == torch.cuda.get_device_name(cuda)
    assert gpu.memory_gib > 0.9 * torch.cuda.get_device_properties(cuda).total_memory / 2**30


def test_a_known_load(under_load):
    summary = summarize(under_load, 1.0)
    (gpu,) = summary.gpus
    if gpu.mean("gpu_busy") is None:
        pytest.skip(f"not offered: {gpu.record.missing}")
    assert gpu.statistics["gpu_busy"].p50 > 95 and gpu.record.ours is not False
    assert diagnose(summary).verdict in (Verdict.GPU_BOUND, Verdict.COMPUTE_BOUND)
    if gpu.mean("sm_active") is not None:
        assert gpu.mean("sm_active") > 50 and gpu.mean("tensor_active") > 20
        assert diagnose(summary).verdict is Verdict.COMPUTE_BOUND


def test_the_energy_counter_agrees_with_sampled_power(under_load):
    counted, sampled = (under_load.columns[f"gpu0/{name}"] for name in ("counted_power", "power"))
    if len(counted) < 5 or not len(sampled):
        pytest.skip(f"not offered: {under_load.gpus[0].missing}")
    begin, end = counted.times[1], counted.times[-1]
    same = (sampled.times >= begin) & (sampled.times <= end)
    assert sampled.values[same].mean() == pytest.approx(counted.values[2:].mean(), rel=0.1)
    assert summarize(under_load, 1.0).gpus[0].energy_source is EnergySource.COUNTER


def test_the_program_keeps_its_memory_apart_from_others(under_load):
    gpu = summarize(under_load, 1.0).gpus[0]
    own = gpu.mean("process_memory")
    if own is None:
        pytest.skip(f"processes are not attributed here: {gpu.record.missing}")
    assert 0.1 < own <= gpu.mean("memory") + 0.5


def test_an_idle_card_is_seen_idle_and_what_that_costs(device, under_load):
    time.sleep(2)
    recording = recorded(device, lambda: time.sleep(10))
    print(f"poller: {recording.poller_share:.2%} of a core")
    assert recording.poller_share < 0.02
    fast = [recording.values(f"gpu0/{name}") for name in ("gpu_busy", "power", "sm_clock")]
    assert max(map(len, fast)) > 50, "every fast call takes more than its share: the rates were lowered"
    if len(fast[0]):
        assert np.median(fast[0]) < 20


def loop(cuda, folder, batches, step, seconds=SECONDS):
    """A training loop as fastae's, with a log step every 20 iterations; returns the report."""
    info = RunInfo("dali", compiled=False, amp=True, batch_size=1)
    with Monitor(folder, 10, local_gpus(cuda), info) as monitor:
        step(next(batches))
        torch.cuda.synchronize()
        monitor.enter(Phase.TRAIN)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began, data_wait = time.perf_counter(), 0.0
            for _ in range(20):
                asked = time.perf_counter()
                batch = next(batches)
                data_wait += time.perf_counter() - asked
                step(batch)
            blocked = time.perf_counter()
            torch.cuda.synchronize()
            device_wait = time.perf_counter() - blocked
            monitor.record(20, time.perf_counter() - began, data_wait, device_wait)
    return read_report(folder)


def slow_batches():
    while True:
        time.sleep(0.02)
        yield None


def many_small_kernels(cuda):
    small = torch.ones(1, device=cuda)

    def step(batch):
        for _ in range(300):
            np.linalg.norm(np.ones(500))  # the host's own work between two launches
            small.add_(1)

    return step


def one_product(cuda, size=8192):
    matrix = matrices(cuda, size)
    return lambda batch: matrix @ matrix


@pytest.mark.parametrize(
    ("batches", "make_step", "verdicts"),
    [
        (slow_batches(), lambda cuda: one_product(cuda, 4096), {Verdict.WAITING_FOR_DATA}),
        (itertools.repeat(None), many_small_kernels, {Verdict.LAUNCH_BOUND}),
        (itertools.repeat(None), one_product, {Verdict.GPU_BOUND, Verdict.COMPUTE_BOUND}),
    ],
    ids=["data-bound", "launch-bound", "busy"],
)
def test_the_verdict_on_a_loop(cuda, tmp_path, batches, make_step, verdicts):
    assert loop(cuda, tmp_path, batches, make_step(cuda)).diagnosis.verdict in verdicts


@pytest.mark.parametrize(
    ("work", "verdicts"),
    [
        ("time.sleep(0.005); big @ big; torch.cuda.synchronize()", {Verdict.WAITING_FOR_DATA}),
        ("sum(range(500)); small.add_(1)", {Verdict.LAUNCH_BOUND}),
        ("big @ big; torch.cuda.synchronize()", {Verdict.GPU_BOUND, Verdict.COMPUTE_BOUND}),
    ],
    ids=["data-bound", "launch-bound", "busy"],
)
def test_the_verdict_on_a_command(cuda, tmp_path, work, verdicts):
    code = f"""
import time, torch
small, big = torch.ones(1, device="cuda"), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.monotonic() + {SECONDS}
while time.monotonic() < end:
    {work}
"""
    result = fastae("gpu", "--out", tmp_path, "--", sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    report = read_report(tmp_path)
    if report.judged is None or report.judged.mean("gpu_busy") is None:
        pytest.skip(f"not judged: {report.absence}")
    assert report.diagnosis.verdict in verdicts, result.stderr


def test_a_run_on_the_gpu_reports_on_it(face_folder, tmp_path):
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, "--device", "cuda", "--batch-size", 16,
        "--no-compile", "--iterations", 300, "--eval-every", 300, "--profile", 3,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (gpu,) = read_report(out).summary.gpus
    assert gpu.record.gpu.name == torch.cuda.get_device_name(0) and (out / "trace.json.gz").exists()


def test_another_program(tmp_path):
    watched = fastae("gpu", "--out", tmp_path, "--", "sh", "-c", "echo its own; exit 3")
    assert watched.returncode == 3 and watched.stdout == "its own\n" and "verdict" in watched.stderr
    assert read_report(tmp_path).absence is not None, "it was on no GPU"
