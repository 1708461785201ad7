"""The sampler against the real card and driver: energy both ways, utilisation under a known load, cost."""

import json
import os
import time

import pytest
import torch

from fastae.device import uuid
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import close_nvml, gpu_by_uuid, open_nvml, visible_gpus
from fastae.monitor.poller import BUDGET, TRAIN, Poller
from fastae.monitor.summary import neighbours, summarise

from ..commands import fastae

SECONDS = 6.0


@pytest.fixture(scope="module")
def library():
    library = open_nvml()
    yield library
    close_nvml(library)


@pytest.fixture(scope="module")
def gpu(library, cuda):
    visible = visible_gpus(library, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return gpu_by_uuid(library, uuid(cuda)) or visible[0]


def sampled(library, gpu, work):
    poller = Poller([GpuReader(library, gpu)], HostReader(os.getpid()), hz=10)
    poller.start()
    poller.enter(TRAIN)
    work()
    poller.stop()
    return poller.recording()


@pytest.fixture(scope="module")
def under_load(library, gpu, cuda):
    """Large matrix products without a pause: the card's utilisation is 100 %."""
    matrix = torch.randn(4096, 4096, device=cuda)

    def multiply():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()

    return sampled(library, gpu, multiply)


def test_pytorchs_gpu_is_found_by_its_uuid(library, gpu, cuda):
    assert gpu.name == torch.cuda.get_device_name(cuda)
    assert gpu.memory_gib > 0.9 * torch.cuda.get_device_properties(cuda).total_memory / 2**30


def test_utilisation_under_a_known_load(under_load):
    statistics = summarise(under_load).gpus[0].statistics
    if "utilisation" not in statistics:
        pytest.skip(f"not offered: {under_load.not_offered}")
    assert statistics["utilisation"].p50 > 95


def test_the_energy_counter_agrees_with_integrated_power(under_load):
    counter, watts = under_load.column("gpu0/energy"), under_load.column("gpu0/power")
    times = under_load.times
    # Power is a mean over the last second on recent cards: the first two show the rise from idle.
    settled = times > 2
    first, second = neighbours(counter, settled)
    if not len(first):
        pytest.skip(f"not offered: {under_load.not_offered}")
    counted = counter[second[-1]] - counter[first[0]]
    integrated = ((times[second] - times[first]) * (watts[second] + watts[first]) / 2).sum()
    assert integrated == pytest.approx(counted, rel=0.05)


def test_an_idle_card_is_seen_idle(library, gpu, under_load):
    time.sleep(2)
    statistics = summarise(sampled(library, gpu, lambda: time.sleep(3))).gpus[0].statistics
    if "utilisation" not in statistics:
        pytest.skip("not offered")
    assert statistics["utilisation"].p50 < 20


def test_the_samplers_cost(library, gpu):
    recording = sampled(library, gpu, lambda: time.sleep(10))
    assert recording.sampler_share < 1.2 * BUDGET
    assert recording.samples > 50, "NVML is dearer here than the budget: the rate was lowered"


def test_a_run_on_the_gpu_reports_on_it(face_folder, tmp_path):
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", face_folder, "--out", out, "--device", "cuda", "--batch-size", 16,
        "--no-compile", "--iterations", 300, "--eval-every", 300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (gpu,) = json.loads((out / "gpu.json").read_text())["summary"]["gpus"]
    assert gpu["name"] == torch.cuda.get_device_name(0)


def test_one_look_and_another_program():
    (first, *_) = json.loads(fastae("gpu", "--once", "--json").stdout)
    assert first["memory"] > 0 and first["uuid"]
    watched = fastae("gpu", "--", "sh", "-c", "echo its own; exit 3")
    assert watched.returncode == 3 and watched.stdout == "its own\n" and "verdict" in watched.stderr
