"""`fastae doctor` on this machine, and on simulated ones."""

import os
import sys
import tempfile
from pathlib import Path

import pynvml
import pytest
import torch

from fastae.device import compatibility, doctor, nvml
from fastae.device.choose import find_device
from fastae.device.compatibility import (
    Driver,
    build_mismatch,
    install_command,
    torch_mismatch,
    unusable_gpu_reason,
)
from fastae.device.doctor import CHECKS, Problem
from fastae.device.nvml import Gpu, NvmlError
from fastae.utils.environment import DALI_BUILDS

from ..commands import here, refuses
from ..monitor.recorded_nvml import BUSY, Card, RecordedNvml

CUDA_13_BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_12_BUILD = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
HOPPER, VOLTA, BLACKWELL = (9, 0), (7, 0), (12, 0)


def card(version, cuda, *capabilities):
    """Makes a driver of this version, with a card of each of these compute capabilities."""
    known = capabilities or (HOPPER,)
    return Driver(version, cuda, tuple(Gpu(0, "H100", memory_gib=80.0, capability=each) for each in known))


NEW, OLD = card("580.65.06", (13, 0)), card("570.86.15", (12, 8))


@pytest.fixture
def install(monkeypatch):
    """A function that simulates PyTorch and DALI for some versions of CUDA, and a driver."""

    def be(cuda=None, built=(), dali=(13,), driver=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, available=False):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(compatibility, "cuda_error", lambda: "" if available else "it runs nothing")
        builds = {major: DALI_BUILDS[major] for major in dali}
        for module in (doctor, compatibility):
            monkeypatch.setattr(module, "dali_builds", lambda: builds)

        def read_driver():
            if isinstance(driver, Driver):
                return driver
            return nvml.open_nvml(RecordedNvml(absent=driver))

        monkeypatch.setattr(compatibility, "read_driver", read_driver)
        doctor._read_driver.cache_clear()

    monkeypatch.setattr(compatibility, "CHECKOUT", Path("elsewhere"))
    monkeypatch.setattr(compatibility, "has_nvidia_card", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield be
    doctor._read_driver.cache_clear()


def test_the_output_for_this_machine_fits_on_one_screen(capsys):
    assert here("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and CHECKS.keys() <= {line.split()[0] for line in lines}
    in_a_checkout = (Path(doctor.__file__).parents[2] / ".git").exists()
    assert ("unknown" in lines[0]) is not in_a_checkout
    assert len(compatibility.dali_builds()) == 1 and build_mismatch() == ""


@pytest.mark.parametrize(
    ("driver", "cuda", "dali", "line"),
    [
        (NEW, "13.0", 13, ""),
        (NEW, "12.8", 12, ""),
        (NEW, None, 13, "install nvidia-dali-cuda130"),
        (OLD, "13.0", 12, "cu126"),
        (card("580.65.06", (13, 0), VOLTA), "13.0", 13, "cu126"),
        (card("580.65.06", (13, 0), VOLTA), "12.8", 12, ""),
        (card("470.57", (11, 4), VOLTA), "12.8", 12, "driver 580"),
        # Neither build works, so the remedy must not lead from 13 to 12 and back.
        (card("570.86.15", (12, 8), BLACKWELL), "13.0", 13, "driver 580 or newer"),
        (card("570.86.15", (12, 8), BLACKWELL), "12.6", 12, "driver 580 or newer"),
        (card("580.65.06", (13, 0), BLACKWELL), "12.6", 12, "install nvidia-dali-cuda130"),
        (card("580.65.06", (13, 0), BLACKWELL), "13.0", 13, ""),
        (card("580.65.06", (13, 0), BLACKWELL, VOLTA), None, 13, "install nvidia-dali-cuda130"),
    ],
)
def test_pytorchs_build_is_compared_with_driver_and_card(install, driver, cuda, dali, line):
    built = {None: [], "13.0": CUDA_13_BUILD}.get(cuda, CUDA_12_BUILD)
    install(cuda, built, (dali,), driver, available=not line)
    assert (torch_mismatch(driver) == "") is (line == "")
    _, reason = doctor.check_driver()
    assert reason == (unusable_gpu_reason() or "")
    assert line in reason if line else not reason


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
    assert compatibility._has_code_for(built, capability) is runs


def test_dali_is_compared_with_pytorch_and_driver(install):
    for cuda, dali, is_mixture in (("13.0", (12,), True), ("13.0", (13,), False), (None, (12,), False),
                                   ("12.8", (12, 13), True)):  # fmt: skip
        install(cuda, dali=dali, driver=NEW)
        assert bool(build_mismatch()) is is_mixture
        assert bool(doctor.check_dali()[1]) is is_mixture
    install(None, dali=(13,), driver=OLD)
    text, remedy = doctor.check_dali()
    assert "570.86.15" in text and "cu126" in remedy
    install("12.6", dali=())
    with pytest.raises(Problem, match="pip install nvidia-dali-cuda120"):
        doctor.check_dali()


def test_what_cannot_be_imported_makes_training_impossible(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(doctor, "CHECKS", {"dali": doctor.check_dali})
    assert here("doctor") == 1
    found, remedy, _ = capsys.readouterr().out.splitlines()
    assert "problem: " in found and "-> " in remedy
    monkeypatch.delitem(sys.modules, "fastae.device.doctor")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "PyTorch" in refuses("doctor") and install_command() in refuses("doctor")


def test_the_remedies_fit_how_fastae_was_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(compatibility, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert install_command(12) == install_command(13) == f"cd {tmp_path}; make clean; make setup"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "conda"))
    for major, index in ((12, compatibility.CUDA_12_INDEX), (13, "")):
        uninstall, torch_command, dali_command = install_command(major).split("; ")
        assert all(f" {name}" in uninstall for name in ("torch", *DALI_BUILDS.values()))
        assert index in torch_command and torch_command.endswith(" torch")
        assert dali_command == f"{compatibility.PIP} install {DALI_BUILDS[major]}"


def test_the_driver_and_its_gpus_are_listed(install):
    lost = Card(BUSY, uuid="GPU-3", index=2, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    machine = RecordedNvml(Card(BUSY), Card(BUSY, uuid="GPU-2", index=1), lost)
    driver = compatibility.read_driver(machine)
    assert machine.opened == 0 and driver.cuda == (13, 0)
    assert [gpu.capability for gpu in driver.gpus] == [(9, 0), (9, 0), None]
    with pytest.raises(NvmlError, match="FUNCTION_NOT_FOUND"):
        compatibility.read_driver(RecordedNvml(missing=["nvmlSystemGetCudaDriverVersion"]))
    install(driver=driver)
    text, remedy = doctor.check_driver()
    assert "580.65.06" in text and "2 x NVIDIA H100" in text and "NVML_ERROR_GPU_IS_LOST" in text and remedy


MISSING, STALE = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


@pytest.mark.parametrize(
    ("code", "cuda_works", "wsl", "card", "loaded", "words"),
    [
        (MISSING, False, False, False, False, ["CPU"]),
        (MISSING, False, False, True, False, ["install NVIDIA's driver"]),
        (MISSING, False, False, True, True, ["libraries are missing", "--gpus all"]),
        (MISSING, True, False, True, True, ["utility"]),
        (MISSING, True, True, False, False, ["Windows"]),
        (STALE, False, False, True, True, ["NVML_ERROR_LIB_RM_VERSION_MISMATCH", "reboot"]),
        (STALE, True, False, True, True, ["CUDA works"]),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, False, False, True, False, ["modprobe", "dkms", "Secure Boot"]),
        (pynvml.NVML_ERROR_TIMEOUT, False, False, True, True, ["NVML_ERROR_TIMEOUT", "nvidia-smi"]),
    ],
)
def test_without_nvml_there_is_a_reason_and_a_remedy_if_there_is_a_card(
    monkeypatch, install, tmp_path, code, cuda_works, wsl, card, loaded, words
):
    install(driver=code, available=cuda_works)
    monkeypatch.setattr(compatibility, "LOADED_DRIVER", tmp_path if loaded else tmp_path / "missing")
    monkeypatch.setattr(nvml, "WSL_DEVICE", tmp_path if wsl else tmp_path / "missing")
    monkeypatch.setattr(compatibility, "has_nvidia_card", lambda: card)
    text, remedy = doctor.check_driver()
    assert bool(remedy) is (card or wsl) and all(word in text + remedy for word in words)
    reason = unusable_gpu_reason()
    assert reason is None if cuda_works or not card else all(word in reason for word in words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("cudaGetDeviceCount(). Error 802: system not yet initialized", "fabricmanager"),
        ("cudaGetDeviceCount(). Error 999: unknown error\nmore", "dmesg"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable\nmore", "nvidia-smi"),
    ],
)
def test_pytorchs_error_says_why_a_gpu_is_not_used(install, monkeypatch, error, words):
    def breaks(*_, device):
        raise RuntimeError(error)

    cuda_error = compatibility.cuda_error
    install("13.0", CUDA_13_BUILD, driver=NEW, available="busy" in error)
    monkeypatch.setattr(compatibility, "cuda_error", cuda_error)
    monkeypatch.setattr(torch, "ones", breaks)
    assert find_device("auto").type == "cpu"
    _, reason = doctor.check_driver()
    assert reason == unusable_gpu_reason() and reason.startswith(f"{error.splitlines()[0]}: ")
    assert words in reason
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert ("unset CUDA_VISIBLE_DEVICES=7" in doctor.check_driver()[1]) == (words == "dmesg")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in doctor.check_driver()[1] and unusable_gpu_reason() is None


def test_cards_with_shared_memory_and_cards_on_pci_are_recognised(install, monkeypatch, tmp_path):
    install(driver=Driver("580.1", (13, 0), (Gpu(0, "NVIDIA GB10", capability=(12, 1)),)))
    text, _ = doctor.check_driver()
    assert "0 GiB" not in text and "shared" in text
    monkeypatch.undo()
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "vendor").write_text("0x10de\n")
    assert compatibility.has_nvidia_card(tmp_path) and not compatibility.has_nvidia_card(tmp_path / "gone")


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX" in doctor.check_compile()[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "no-such-compiler-either")
    remedy = doctor.check_compile()[1]
    assert "no-such-compiler-either" in remedy and "Python.h" in remedy, "Triton needs both"


def test_too_few_cores_and_too_little_memory_or_disk_have_remedies(monkeypatch, tmp_path):
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


@pytest.mark.parametrize(("error", "is_bug"), [(OSError("no /proc here"), False), (KeyError("cpu"), True)])
def test_a_check_that_fails_does_not_hide_the_others(monkeypatch, capsys, error, is_bug):
    def breaks():
        raise error

    monkeypatch.setattr(doctor, "CHECKS", {"memory": breaks, "disk": doctor.check_disk})
    assert doctor.examine() == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(error) in lines[0] and lines[1 + is_bug].startswith("disk")
    assert ("bug" in lines[1]) is is_bug


def test_a_cache_that_cannot_be_listed_has_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    text, remedy = doctor.check_cache()
    assert str(tmp_path) in text and "--cache-dir" in remedy


def test_a_missing_temporary_folder_is_a_problem(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    with pytest.raises(Problem, match="temporary folder"):
        doctor.check_compile()
