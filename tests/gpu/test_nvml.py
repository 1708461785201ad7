"""The monitor against the real card and driver: a known load, energy both ways, verdicts, cost.

Three programs whose verdict is known: one that waits for its data, one of many small kernels, one of large
matrix products.
"""

import itertools
import os
import time

import numpy as np
import pytest
import torch

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.nvml import close_nvml, gpu_of_cuda, open_nvml
from fastae.monitor.poller import BUDGET, Poller
from fastae.monitor.recording import Phase
from fastae.monitor.summary import EnergySource, RunInfo, Verdict, summarize

from ..commands import fastae

SECONDS = 15.0
"""Long enough for ten readings of what is read once a second."""


@pytest.fixture(scope="module")
def library():
    library = open_nvml()
    yield library
    close_nvml(library)


@pytest.fixture(scope="module")
def device(library, cuda):
    (uuid,) = local_gpus(cuda)
    found = gpu_of_cuda(library, uuid, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if found is None:
        pytest.skip("NVML does not show the GPU that CUDA uses")
    return found


def recorded(library, device, work, hz=10):
    host = HostReader(os.getpid())
    poller = Poller(host, [GpuReader(library, device, "gpu0", host.is_ours)], hz)
    poller.start()
    poller.enter(Phase.TRAIN)
    work()
    assert poller.stop()
    return poller.recording()


def matrices(cuda, size=8192):
    return torch.randn(size, size, device=cuda, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def under_load(library, device, cuda):
    """Large matrix products without a pause."""
    matrix = matrices(cuda)

    def multiply():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()

    return recorded(library, device, multiply)


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
    counter, power = under_load.columns["gpu0/energy"], under_load.columns["gpu0/power"]
    if len(counter) < 5 or not len(power):
        pytest.skip(f"not offered: {under_load.gpus[0].missing}")
    begin, end = counter.times[2], counter.times[-1]
    counted = (counter.values[-1] - counter.values[2]) / (end - begin)
    sampled = power.values[(power.times >= begin) & (power.times <= end)].mean()
    assert sampled == pytest.approx(counted, rel=0.1)
    assert summarize(under_load, 1.0).gpus[0].energy_source is EnergySource.COUNTER


def test_the_program_keeps_its_memory_apart_from_others(under_load):
    gpu = summarize(under_load, 1.0).gpus[0]
    own = gpu.mean("process_memory")
    if own is None:
        pytest.skip(f"processes are not attributed here: {gpu.record.missing}")
    assert 0.1 < own <= gpu.mean("memory") + 0.5


def test_an_idle_card_is_seen_idle(library, device, under_load):
    time.sleep(2)
    summary = summarize(recorded(library, device, lambda: time.sleep(3)), 1.0)
    busy = summary.gpus[0].mean("gpu_busy")
    if busy is None:
        pytest.skip("not offered")
    assert busy < 20


def test_the_cost(library, device):
    recording = recorded(library, device, lambda: time.sleep(10))
    print(f"poller: {recording.poller_share:.2%} of a core")
    assert recording.poller_share < 2 * BUDGET
    fast = [len(recording.columns[f"gpu0/{name}"]) for name in ("gpu_busy", "power", "sm_clock")]
    assert max(fast) > 50, "every fast call is dearer than its budget: the rates were lowered"


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


def test_a_program_that_waits_for_its_data(cuda, tmp_path):
    matrix = matrices(cuda, 4096)
    report = loop(cuda, tmp_path, slow_batches(), lambda batch: matrix @ matrix)
    assert report.diagnosis.verdict is Verdict.WAITING_FOR_DATA


def test_a_program_of_many_small_kernels(cuda, tmp_path):
    small = torch.ones(1, device=cuda)

    def step(batch):
        for _ in range(300):
            np.linalg.norm(np.ones(500))  # the host's own work between two launches
            small.add_(1)

    report = loop(cuda, tmp_path, itertools.repeat(None), step)
    assert report.diagnosis.verdict is Verdict.LAUNCH_BOUND


def test_a_program_of_large_products(cuda, tmp_path):
    matrix = matrices(cuda)
    report = loop(cuda, tmp_path, itertools.repeat(None), lambda batch: matrix @ matrix)
    assert report.diagnosis.verdict in (Verdict.GPU_BOUND, Verdict.COMPUTE_BOUND)


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
