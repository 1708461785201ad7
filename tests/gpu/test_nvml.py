"""The monitor against the real card and driver: a known load, energy both ways, verdicts, cost.

Three programs whose verdict is known: one that waits for its data, one of many small kernels, one of large
matrix products.
"""

import itertools
import os
import time

import numpy as np
import pynvml
import pytest
import torch

from fastae import watch
from fastae.device.cards import find_card
from fastae.device.memory import peak_memory
from fastae.device.nvml import gpu_of_cuda, open_nvml
from fastae.monitor.files import read_report
from fastae.monitor.host import Family, HostReader
from fastae.monitor.monitor import local_gpus, readers_of
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo, Verdict, summarize
from fastae.utils.limits import count_cores

from ..commands import fastae

pytestmark = pytest.mark.usefixtures("real_gpu")

SECONDS = 20.0
"""Long enough for forty samples."""

INFO = RunInfo("dali", compiled=False, amp=True, batch_size=1)


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
    own = Family(os.getpid())
    poller = Poller([*readers_of(pynvml, [device], own), HostReader(own)], 2)
    poller.start()
    poller.enter(Phase.TRAIN)
    work()
    poller.stop()
    assert poller.failure is None
    return poller.recording()


def matrices(cuda, size=8192):
    return torch.randn(size, size, device=cuda, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def under_load(device, cuda):
    """Large matrix products without a pause: the recording's length and the GPU's summary."""
    matrix = matrices(cuda)

    def multiply():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()

    recording = recorded(device, multiply)
    (gpu,) = summarize(recording, INFO, count_cores()).gpus
    return recording.seconds, gpu


def test_the_gpu_of_pytorch_is_found(device, cuda):
    gpu, _ = device
    assert gpu.is_slice or gpu.name == torch.cuda.get_device_name(cuda)
    assert gpu.memory_gib > 0.9 * torch.cuda.get_device_properties(cuda).total_memory / 2**30
    allocated, reserved = peak_memory()
    assert 0 <= allocated <= reserved
    print(f"{gpu.name}: {find_card(gpu.name)}")


def test_a_known_load_and_its_energy_by_counter_and_by_sampled_power(under_load):
    seconds, gpu = under_load
    if not {"gpu_busy", "power"} <= gpu.statistics.keys():
        pytest.skip(f"not offered: {gpu.record.missing}")
    assert gpu.statistics["gpu_busy"].p50 > 95 and not gpu.record.errors
    assert gpu.record.xids == () and not gpu.growth.get("ecc_uncorrected")
    assert gpu.mean("sm_active", unknown=100) > 50 and gpu.mean("tensor_active", unknown=100) > 20
    assert gpu.kwh == pytest.approx(gpu.mean("power") * seconds / 3.6e6, rel=0.1)


def test_an_idle_card_is_seen_idle_at_the_rate_that_was_asked_for(device, under_load):
    time.sleep(2)
    recording = recorded(device, lambda: time.sleep(10))
    assert recording.hz > 1.8, "a query is slow"
    busy = recording.values("gpu/gpu_busy")
    if len(busy):
        assert np.median(busy) < 20


def loop(cuda, folder, batches, step, seconds=SECONDS):
    """A training loop of somebody else; returns the report."""
    with watch(folder, device=cuda) as watched:
        end = time.monotonic() + seconds
        for batch in watched(batches, images=1):
            step(batch)
            if time.monotonic() > end:
                break
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


def test_a_run_on_the_gpu_reports_on_it(face_folder, tmp_path):
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, "--device", "cuda", "--batch-size", 16,
        "--no-compile", "--iterations", 300, "--eval-every", 300, "--profile", 3,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (gpu,) = read_report(out).summary.gpus
    assert gpu.record.gpu.name == torch.cuda.get_device_name(0) and (out / "trace.json.gz").exists()
