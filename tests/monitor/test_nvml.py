"""The stand-in against the real pynvml, and which GPUs a process uses."""

import inspect
import re

import pynvml
import pytest

from fastae.monitor import compatibility, gpu_reader, nvml
from fastae.monitor.nvml import NvmlError, all_gpus, close_nvml, gpu_of_cuda, open_nvml, visible_gpus
from fastae.monitor.recording import Absence

from .recorded_nvml import BUSY, IDLE, SLICE, Card, RecordedNvml, mig_machine

FUNCTIONS = [name for name in dir(RecordedNvml) if name.startswith("nvml")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_has_the_real_signature(name):
    real = inspect.signature(getattr(pynvml, name))
    ours = inspect.signature(getattr(RecordedNvml(), name))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in real.parameters.values()
    ]


def test_a_function_that_the_stand_in_lacks_is_not_called():
    sources = "".join(inspect.getsource(module) for module in (compatibility, gpu_reader, nvml))
    called = set(re.findall(r"\b(?:library|nvml)\.(nvml\w+)", sources))
    assert len(called) > 20 and called <= set(FUNCTIONS)


def test_what_is_opened_is_closed():
    library = open_nvml(RecordedNvml(Card(IDLE)))
    close_nvml(library)
    assert library.opened == 0


@pytest.mark.parametrize(
    ("code", "in_wsl", "absence"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False, Absence.NO_NVML),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, True, Absence.NO_NVML_IN_WSL),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, False, Absence.NVML_FAILED),
    ],
)
def test_nvml_that_cannot_be_used(monkeypatch, tmp_path, code, in_wsl, absence):
    monkeypatch.setattr(nvml, "WSL_DEVICE", tmp_path if in_wsl else tmp_path / "missing")
    with pytest.raises(NvmlError) as raised:
        open_nvml(RecordedNvml(absent=code))
    assert raised.value.absence is absence and raised.value.detail == nvml.ERROR_NAMES[code]


@pytest.fixture
def machine():
    """Two cards, and a MIG slice of a third that this process may not see."""
    board = Card(BUSY, uuid="GPU-hidden", index=None, mig=True)
    return RecordedNvml(
        Card(IDLE, uuid="GPU-aaaa1111", index=0),
        Card(BUSY, uuid="GPU-bbbb2222", index=1),
        Card(SLICE, uuid="MIG-cccc3333", index=None, board=board),
    )


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aaaa1111", "GPU-bbbb2222"]),
        ("1", ["GPU-bbbb2222"]),
        ("1,0", ["GPU-bbbb2222", "GPU-aaaa1111"]),
        ("GPU-bbbb", ["GPU-bbbb2222"]),
        ("GPU-", []),
        ("MIG-cccc3333", ["MIG-cccc3333"]),
        ("0,7,1", ["GPU-aaaa1111"]),
        ("", []),
        ("-1", []),
        ("none", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(machine, visible, uuids):
    assert [gpu.uuid for gpu, _ in visible_gpus(machine, visible)] == uuids


def test_a_gpu_by_the_uuid_that_cuda_gives(machine):
    gpu, _ = gpu_of_cuda(machine, "bbbb2222", None)
    assert (gpu.uuid, gpu.memory_gib, gpu.power_limit, gpu.is_slice) == ("GPU-bbbb2222", 80.0, 700.0, False)
    assert (gpu.max_sm_clock, gpu.max_pcie_generation, gpu.max_pcie_width) == (1980, 5, 16)
    assert gpu_of_cuda(machine, "unknown", None) is None, "never another GPU"


@pytest.mark.parametrize(
    ("uuid", "visible", "found"),
    [
        ("bbbb", None, "MIG-bbbb"),
        ("board", "MIG-bbbb", "MIG-bbbb"),
        ("board", None, None),
        ("board", "0", None),
    ],
)
def test_a_slice_is_found_and_its_board_is_never_taken_for_it(uuid, visible, found):
    device = gpu_of_cuda(mig_machine(), uuid, visible)
    assert (device and device[0].uuid) == found
    assert device is None or device[0].is_slice


def test_the_only_slice_of_a_board():
    gpu, _ = gpu_of_cuda(mig_machine(names=("aaaa",)), "board", None)
    assert gpu.uuid == "MIG-aaaa"


def test_a_board_in_mig_mode_stands_for_its_slices():
    assert [gpu.uuid for gpu, _ in visible_gpus(mig_machine(), None)] == ["MIG-aaaa", "MIG-bbbb"]


def test_a_lost_gpu_stays_in_the_list():
    lost = Card(BUSY, uuid="GPU-2", index=1, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    first, second = (gpu for gpu, _ in all_gpus(RecordedNvml(Card(BUSY), lost)))
    assert first.lost is None and second.lost == "NVML_ERROR_GPU_IS_LOST" and second.index == 1
