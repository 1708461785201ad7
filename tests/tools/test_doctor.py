"""`fastae doctor` on this machine, and on machines that lack or have things."""

import sys
import tempfile
from pathlib import Path

import pynvml
import pytest
import torch

from fastae.device import compatibility, nvml
from fastae.device.compatibility import Driver, build_mismatch, torch_mismatch, unusable_gpu_reason
from fastae.device.nvml import Gpu, NvmlError
from fastae.tools import doctor
from fastae.tools.doctor import Problem, ask_nvml, checks_of
from fastae.utils.environment import DALI_BUILDS

from ..commands import here
from ..monitor.recorded_nvml import BUSY, Card, RecordedNvml


def gpus(*capabilities):
    return tuple(Gpu(0, "NVIDIA H100 80GB HBM3", memory_gib=80.0, capability=each) for each in capabilities)


OLD = Driver("570.86.15", (12, 8), gpus((9, 0)))
NEW = Driver("580.65.06", (13, 0), gpus((9, 0)))
VOLTA = Driver("580.65.06", (13, 0), gpus((7, 0)))
ANCIENT = Driver("470.57", (11, 4), gpus((7, 0)))
BLACKWELL_OLD = Driver("570.86.15", (12, 8), gpus((12, 0)))
BLACKWELL = Driver("580.65.06", (13, 0), gpus((12, 0)))
BLACKWELL_AND_VOLTA = Driver("580.65.06", (13, 0), gpus((12, 0), (7, 0)))
CUDA_13_BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_12_BUILD = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.fixture
def install(monkeypatch):
    """PyTorch and DALI for these versions of CUDA, and this driver, as doctor and compatibility see them."""

    def be(cuda=None, built=(), dali=(13,), driver=None, available=False):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        builds = {major: DALI_BUILDS[major] for major in dali}
        for module in (doctor, compatibility):
            monkeypatch.setattr(module, "dali_builds", lambda: builds)

        def read_driver():
            if isinstance(driver, Driver):
                return driver
            return nvml.open_nvml(RecordedNvml(absent=driver or pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))

        monkeypatch.setattr(compatibility, "read_driver", read_driver)

    monkeypatch.setattr(compatibility, "has_nvidia_card", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return be


def test_this_machine_on_one_screen(capsys):
    assert here("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and checks_of(ask_nvml()).keys() <= {line.split()[0] for line in lines}
    in_a_checkout = (Path(doctor.__file__).parents[2] / ".git").exists()
    assert ("unknown" in lines[0]) is not in_a_checkout
    assert len(compatibility.dali_builds()) == 1 and build_mismatch() == ""


@pytest.mark.parametrize(
    ("driver", "cuda", "built", "dali", "fits", "line"),
    [
        (NEW, "13.0", CUDA_13_BUILD, 13, True, ""),
        (NEW, "12.8", CUDA_12_BUILD, 12, True, ""),
        (OLD, "13.0", CUDA_13_BUILD, 12, False, "'.[cuda12]'"),
        (VOLTA, "13.0", CUDA_13_BUILD, 13, False, "'.[cuda12]'"),
        (VOLTA, "12.8", CUDA_12_BUILD, 12, True, ""),
        (NEW, None, [], 13, False, "'.[cuda13]'"),
        (ANCIENT, "12.8", CUDA_12_BUILD, 12, False, "driver 580"),
        # Neither build works: no circle from 13 to 12 and back.
        (BLACKWELL_OLD, "13.0", CUDA_13_BUILD, 13, False, "driver 580 or newer"),
        (BLACKWELL_OLD, "12.6", CUDA_12_BUILD, 12, False, "driver 580 or newer"),
        (BLACKWELL, "12.6", CUDA_12_BUILD, 12, False, "'.[cuda13]'"),
        (BLACKWELL, "13.0", CUDA_13_BUILD, 13, True, ""),
        (BLACKWELL_AND_VOLTA, None, [], 13, False, "'.[cuda13]'"),
    ],
)
def test_pytorch_against_driver_and_card(install, driver, cuda, built, dali, fits, line):
    install(cuda, built, (dali,), driver, available=fits)
    assert (torch_mismatch(driver) == "") is fits
    _, remedy = doctor.check_torch(ask_nvml())
    assert (remedy == "") is fits and line in remedy
    reason = unusable_gpu_reason()
    assert reason is None if fits else line in reason


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["compute_80"], (9, 0), True),
        (["sm_90a", "sm_120"], (12, 0), True),
        (["sm_100f"], (10, 3), True),
    ],
)
def test_which_code_a_card_runs(built, capability, runs):
    assert compatibility._runs(built, capability) is runs


def test_dali_is_compared_with_pytorch_and_driver(install):
    for cuda, dali, is_mixture in (("13.0", (12,), True), ("13.0", (13,), False), (None, (12,), False),
                                   ("12.8", (12, 13), True)):  # fmt: skip
        install(cuda, dali=dali, driver=NEW)
        assert bool(build_mismatch()) is is_mixture
        assert bool(doctor.check_dali(ask_nvml())[1]) is is_mixture
    install(None, dali=(13,), driver=OLD)
    text, remedy = doctor.check_dali(ask_nvml())
    assert "570.86.15" in text and "'.[cuda12]'" in remedy
    install(dali=())
    with pytest.raises(Problem):
        doctor.check_dali(ask_nvml())


@pytest.mark.parametrize(("module", "check"), [("torch", "torch"), ("nvidia.dali", "dali")])
def test_what_cannot_be_imported_makes_training_impossible(monkeypatch, capsys, module, check):
    monkeypatch.setitem(sys.modules, module, None)
    checks = checks_of(ask_nvml())
    monkeypatch.setattr(doctor, "checks_of", lambda nvml: {check: checks[check]})
    assert doctor.examine() == 1
    found, remedy, _ = capsys.readouterr().out.splitlines()
    assert "problem: " in found and "-> " in remedy


def test_the_driver_and_its_gpus(install):
    lost = Card(BUSY, uuid="GPU-3", index=2, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    machine = RecordedNvml(Card(BUSY), Card(BUSY, uuid="GPU-2", index=1), lost)
    driver = compatibility.read_driver(machine)
    assert machine.opened == 0 and driver.cuda == (13, 0)
    assert [gpu.capability for gpu in driver.gpus] == [(9, 0), (9, 0), None]
    with pytest.raises(NvmlError, match="FUNCTION_NOT_FOUND"):
        compatibility.read_driver(RecordedNvml(missing=["nvmlSystemGetCudaDriverVersion"]))
    install(driver=driver)
    text, remedy = doctor.check_driver(ask_nvml())
    assert "580.65.06" in text and "2 x NVIDIA H100" in text and "NVML_ERROR_GPU_IS_LOST" in text and remedy


@pytest.mark.parametrize(
    ("cuda_works", "wsl", "card", "loaded", "warned", "words"),
    [
        (False, False, False, False, False, "CPU"),
        (False, False, True, False, True, "install NVIDIA's driver"),
        (False, False, True, True, True, "--gpus all"),
        (True, False, True, True, True, "utility"),
        (True, True, False, False, True, "Windows"),
    ],
)
def test_no_nvml(monkeypatch, install, tmp_path, cuda_works, wsl, card, loaded, warned, words):
    install(available=cuda_works)
    monkeypatch.setattr(compatibility, "LOADED_DRIVER", tmp_path if loaded else tmp_path / "missing")
    monkeypatch.setattr(nvml, "WSL_DEVICE", tmp_path if wsl else tmp_path / "missing")
    monkeypatch.setattr(compatibility, "has_nvidia_card", lambda: card)
    text, remedy = doctor.check_driver(ask_nvml())
    assert bool(remedy) is warned and words in text + remedy
    assert ("install NVIDIA's driver" in remedy) is (card and not cuda_works and not loaded)
    assert (unusable_gpu_reason() is None) is (cuda_works or not card)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, ["NVML_ERROR_LIB_RM_VERSION_MISMATCH", "reboot"]),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, ["modprobe", "dkms", "Secure Boot"]),
        (pynvml.NVML_ERROR_TIMEOUT, ["NVML_ERROR_TIMEOUT", "nvidia-smi"]),
    ],
)
def test_a_driver_that_does_not_answer_has_its_remedy(install, code, words):
    install(driver=code)
    text, remedy = doctor.check_driver(ask_nvml())
    assert all(word in text + remedy and word in unusable_gpu_reason() for word in words)
    assert "install" not in remedy, "there is one"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            "fabricmanager",
        ),
        ("Unexpected error from cudaGetDeviceCount(). Error 999: unknown error\nmore", "dmesg"),
    ],
)
def test_why_cuda_does_not_start_is_what_pytorch_says(install, monkeypatch, said, words):
    def breaks():
        raise RuntimeError(said)

    install("13.0", CUDA_13_BUILD, driver=NEW)
    monkeypatch.setattr(torch.cuda, "init", breaks)
    text, remedy = doctor.check_torch(ask_nvml())
    assert said.splitlines()[0] in text and words in remedy and "more" not in text
    assert said.splitlines()[0] in unusable_gpu_reason() and words in unusable_gpu_reason()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in doctor.check_torch(ask_nvml())[1]


def test_cards_that_are_no_usual_ones(install, monkeypatch, tmp_path):
    """GB10 has no memory of its own; a Jetson's GPU is not on PCI."""
    install(driver=Driver("580.1", (13, 0), (Gpu(0, "NVIDIA GB10", capability=(12, 1)),)))
    text, _ = doctor.check_driver(ask_nvml())
    assert "0 GiB" not in text and "shared" in text
    (tmp_path / "compatible").write_bytes(b"nvidia,p3737-0000\0nvidia,tegra234\0")
    assert compatibility.is_jetson(tmp_path / "compatible") and not compatibility.is_jetson(
        tmp_path / "missing"
    )
    install()
    monkeypatch.setattr(compatibility, "is_jetson", lambda: True)
    text, remedy = doctor.check_driver(ask_nvml())
    assert "Jetson" in text and "JetPack" in remedy


def test_why_a_gpu_is_unusable(install, monkeypatch, tmp_path):
    install(driver=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, available=True)
    assert unusable_gpu_reason() is None, "CUDA decides"
    install("13.0", CUDA_13_BUILD, driver=OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden by the user
    assert unusable_gpu_reason() is None
    monkeypatch.undo()
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "vendor").write_text("0x10de\n")
    assert compatibility.has_nvidia_card(tmp_path) and not compatibility.has_nvidia_card(tmp_path / "missing")


@pytest.mark.parametrize(
    ("status", "warned", "words"),
    [(0, False, "JPEG engine"), (7, False, "CUDA cores"), (None, True, "unknown")],
)
def test_a_jpeg_engine_is_what_nvjpeg_says(monkeypatch, status, warned, words):
    if not torch.cuda.is_available():
        assert doctor._nvjpeg_status() != 0, "DALI's nvJPEG answers, and not that there is an engine"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_nvjpeg_status", lambda: status)
    text, remedy = doctor.check_jpeg()
    assert words in text and ("video" in remedy) is warned


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX" in doctor.check_compile()[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "no-such-compiler-either")
    remedy = doctor.check_compile()[1]
    assert "no-such-compiler-either" in remedy and "Python.h" in remedy, "what Triton needs"


def test_little_cpu_memory_disk_and_cache(monkeypatch, tmp_path):
    assert not doctor.check_disk()[1]
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "OMP_NUM_THREADS=1" in doctor.check_cpu()[1]
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1e9)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1e9)
    assert all(check()[1] for check in (doctor.check_memory, doctor.check_disk, doctor.check_cache))
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    text, remedy = doctor.check_cache()
    assert str(tmp_path) in text and "--cache-dir" in remedy


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch, capsys):
    def breaks():
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "checks_of", lambda nvml: {"memory": breaks, "disk": doctor.check_disk})
    assert doctor.examine() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "no /proc here" in lines[0] and lines[2].startswith("disk")


def test_a_missing_temporary_folder_is_a_problem(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    with pytest.raises(Problem, match="temporary folder"):
        doctor.check_temporary()
