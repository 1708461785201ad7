"""`fastae doctor` on this machine, and on machines that lack or have things."""

import json
import sys

import pytest

from fastae import doctor
from fastae.doctor import OK, PROBLEM, WARNING, Driver
from fastae.environment import version

from .commands import fastae
from .monitor.recorded_nvml import BUSY, MIG, Card, RecordedNvml

H100 = (("NVIDIA H100 80GB HBM3", 80.0, True),)


def driver(number):
    return Driver(number, "13.0", H100)


def test_this_machine_on_one_screen():
    result = fastae("doctor")
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) <= 24 and lines[-1] == "ready to train"
    subjects = {line.split()[0] for line in lines}
    assert {"fastae", "python", "driver", "torch", "dali", "--amp", "--compile", "cpu", "memory", "disk",
            "cache"} <= subjects  # fmt: skip


def test_as_json():
    report = json.loads(fastae("doctor", "--json").stdout)
    assert report["can_train"] is True
    assert all(set(each) == {"subject", "state", "text", "remedy"} for each in report["findings"])


@pytest.mark.parametrize(
    ("build", "number", "state", "remedy"),
    [
        ("nvidia-dali-cuda130", "580.65.06", OK, ""),
        ("nvidia-dali-cuda130", "610.10", OK, ""),
        ("nvidia-dali-cuda130", "570.86.15", WARNING, "install nvidia-dali-cuda120 instead"),
        ("nvidia-dali-cuda120", "525.60.13", OK, ""),
        ("nvidia-dali-cuda120", "525.53", WARNING, "install a newer driver"),
        ("nvidia-dali-cuda120", "580.65.06", OK, ""),
    ],
)
def test_dalis_build_against_the_driver(monkeypatch, build, number, state, remedy):
    monkeypatch.setattr(doctor, "version", lambda name: "2.4.0" if name == build else None)
    found = doctor.of_dali(driver(number))
    assert (found.state, found.remedy) == (state, remedy)
    assert build in found.text


def test_no_dali_or_both(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: None)
    found = doctor.of_dali(driver("535.104.05"))
    assert (found.state, found.remedy) == (PROBLEM, "pip install nvidia-dali-cuda120")
    monkeypatch.setattr(doctor, "version", lambda name: "2.4.0")
    assert doctor.of_dali(None).state == WARNING


@pytest.mark.parametrize(("module", "finding"), [("torch", "of_torch"), ("nvidia.dali", "of_dali")])
def test_what_cannot_be_imported_makes_training_impossible(monkeypatch, capsys, module, finding):
    monkeypatch.setitem(sys.modules, module, None)
    assert getattr(doctor, finding)(None).state == PROBLEM
    assert doctor.examine(as_json=False) == 1
    assert "training is impossible here" in capsys.readouterr().out


def test_a_driver_and_its_gpus(monkeypatch):
    machine = RecordedNvml(Card(BUSY), Card(MIG, uuid="GPU-2", index=1, name="NVIDIA T4"))
    monkeypatch.setattr(doctor, "open_nvml", lambda: machine)
    found, why_not = doctor.look_for_driver()
    assert why_not == "" and found.number == (580, 65) and found.cuda == "13.0"
    assert found.gpus == (*H100, ("NVIDIA T4", 80.0, False))
    h100, t4 = doctor.of_gpus(found)
    assert "with a JPEG engine" in h100.text and "no JPEG engine" in t4.text
    assert doctor.of_driver(found, "").text == "NVIDIA 580.65.06, up to CUDA 13.0"


def test_a_driver_and_a_pytorch_that_cannot_use_it(monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    assert "a CPU build" in doctor.of_torch(driver("580.65")).text
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = doctor.of_torch(driver("580.65"))
    assert found.state == WARNING and "CUDA_VISIBLE_DEVICES" in found.remedy


def test_a_card_without_a_driver(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "vendor").write_text("0x10de\n")
    assert doctor.nvidia_on_pci(tmp_path) and not doctor.nvidia_on_pci(tmp_path / "missing")
    monkeypatch.setattr(doctor, "nvidia_on_pci", lambda: True)
    found = doctor.of_driver(None, "no NVIDIA driver was found")
    assert found.state == WARNING and "--gpus all" in found.remedy


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = doctor.of_compiler()
    assert found.state == WARNING and "'no-such-compiler'" in found.text and "CXX" in found.remedy


def test_a_container_with_less_cpu_than_it_shows(tmp_path, monkeypatch):
    limits = tmp_path / "cpu.max"
    for text, cores in (("150000 100000", 1.5), ("max 100000", None), ("", None)):
        limits.write_text(text)
        assert doctor.quota(limits) == cores
    assert doctor.quota(tmp_path / "missing") is None
    monkeypatch.setattr(doctor, "quota", lambda: 0.5)
    assert doctor.of_cpu().remedy == "OMP_NUM_THREADS=1 and --threads 1"


def test_little_memory_disk_and_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1e9)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1e9)
    for found in (doctor.of_memory(), doctor.of_disk(), doctor.of_cache()):
        assert found.state == WARNING and found.remedy
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in doctor.of_cache().text


def test_a_look_that_fails_does_not_hide_the_others(monkeypatch, capsys):
    def of_memory():
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "of_memory", of_memory)
    assert doctor.examine(as_json=False) == 0
    assert "memory     warning: not known: OSError: no /proc here" in capsys.readouterr().out


def test_the_installed_build_is_one_that_is_known():
    assert sum(version(build) is not None for build in doctor.DALI_BUILDS) == 1
