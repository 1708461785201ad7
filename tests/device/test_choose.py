"""Device, precision and compilation are chosen by what is available, and applied to the process."""

import pytest
import torch
import torch._inductor.config as inductor

from fastae.device import compiling
from fastae.device.apply import apply, use_device, use_kernels, use_tf32
from fastae.device.choose import Hardware, Precision, choose_device, choose_precision
from fastae.device.compiling import can_compile, choose_compile
from fastae.errors import FastaeError
from fastae.training.session import loader_tuning
from fastae.utils import ranks

FLOAT32 = Precision(None, "float32")


def test_precision_follows_the_cpus_features(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision(cpu, amp=False).dtype is None
    for features, dtype in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert choose_precision(cpu, amp=True).dtype is dtype
    assert Precision(torch.float16, "").needs_scaling
    assert not Precision(torch.bfloat16, "").needs_scaling and not FLOAT32.needs_scaling


def test_a_cpu_run_is_compiled_if_it_is_long_enough(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_compile(None, cpu, images=6_400_000)[0]
    assert not choose_compile(None, cpu, images=10_000)[0]
    assert not choose_compile(None, cpu, images=6_400_000, minutes=2)[0]
    assert choose_compile(True, cpu, images=1)[0]
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled, note = choose_compile(None, cpu, images=6_400_000)
    assert not compiled and "no-such-compiler" in note
    with pytest.raises(FastaeError, match="compile needs the C\\+\\+ compiler"):
        choose_compile(True, cpu, images=1)


def test_the_deterministic_mode_reaches_pytorch_and_the_jpeg_engine(monkeypatch):
    """Neither timings nor the load of the JPEG engine affect results then. The mode ends with its run."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    cudnn = torch.backends.cudnn
    try:
        with cudnn.flags(benchmark=False):
            for wanted in (True, False):
                use_kernels(gpu, wanted)
                assert inductor.deterministic is torch.are_deterministic_algorithms_enabled() is wanted
                assert (cudnn.benchmark, cudnn.deterministic) == (not wanted, wanted)
                hardware = Hardware(cpu, FLOAT32, False, "", deterministic=wanted)
                assert (loader_tuning(None, hardware).hw_decoder_load == 0) is wanted
    finally:
        use_kernels(cpu, False)


@pytest.mark.parametrize(
    ("compiled", "chosen", "threads"), [(True, None, 5), (True, "7", 32), (False, None, 32)]
)
def test_the_ranks_of_a_machine_share_its_cores_to_compile(monkeypatch, compiled, chosen, threads):
    name = "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.setenv(name, chosen) if chosen else monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(ranks, "usable_cores", lambda: 16.5)
    with inductor.patch(compile_threads=32):
        apply(Hardware(torch.device("cpu"), FLOAT32, compiled, ""))
        assert inductor.compile_threads == threads


@pytest.mark.parametrize("missing", ["g++", "gcc", "Python.h", "triton"])
def test_a_gpu_needs_more_to_compile_than_a_cpu(monkeypatch, tmp_path, missing):
    gpu, there = torch.device("cuda"), tmp_path / "Python.h"
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None if name == missing else f"/{name}")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None if name == missing else 1)
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    if missing != "Python.h":
        there.touch()
    if missing == "gcc":
        assert choose_compile(None, gpu, 1) == (True, "compiled"), "clang also works"
        monkeypatch.setenv("CC", "gcc")
    compiled, note = choose_compile(None, gpu, 1)
    assert not compiled and missing in note
    with pytest.raises(FastaeError, match=r"compile needs .*--no-compile"):
        choose_compile(True, gpu, 1)
    assert can_compile(torch.device("cpu")) is (missing != "g++")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "cuda:99"])
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(FastaeError, match=f"device '?{name}"):
        choose_device(name)


def test_a_gpu_becomes_the_current_device_and_uses_tf32_if_it_can(monkeypatch):
    current, cuda = [], torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name, index in (("cuda:1", 1), ("cuda", 0)):
        assert use_device(choose_device(name)).index == current[-1] == index

    for capability, note in (((9, 0), "TF32"), ((7, 5), "float32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_precision(cuda, amp=False) == Precision(None, note)
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        use_tf32(cuda)
        assert conv.fp32_precision == matmul.fp32_precision == "tf32"
    finally:
        conv.fp32_precision, matmul.fp32_precision = before
