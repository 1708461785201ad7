"""NVML opened or not, and which GPUs a process uses."""

import pynvml
import pytest

from fastae.device import nvml
from fastae.device.nvml import Absence, NvmlError, all_gpus, gpu_of_cuda, offered, open_nvml

from .recorded_nvml import BUSY, IDLE, SLICE, Card, RecordedNvml, mig_machine


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


def test_a_gpu_by_the_uuid_that_cuda_gives(machine):
    gpu, _ = gpu_of_cuda(machine, "bbbb2222", None)
    assert (gpu.uuid, gpu.memory_gib, gpu.power_limit, gpu.is_slice) == ("GPU-bbbb2222", 80.0, 700.0, False)
    assert gpu.index == 1, "as nvidia-smi numbers it"
    assert gpu.max_pcie_width == 16
    assert gpu_of_cuda(machine, "unknown", None) is None, "never another GPU"


@pytest.mark.parametrize(
    ("names", "uuid", "visible", "found"),
    [
        (("aaaa", "bbbb"), "bbbb", None, "MIG-bbbb"),
        (("aaaa", "bbbb"), "board", "MIG-bbbb", "MIG-bbbb"),
        (("aaaa", "bbbb"), "board", "0", None),
        (("aaaa",), "board", None, "MIG-aaaa"),
    ],
)
def test_a_slice_is_found_and_its_board_is_never_taken_for_it(names, uuid, visible, found):
    device = gpu_of_cuda(mig_machine(names=names), uuid, visible)
    assert (device and device[0].uuid) == found
    assert device is None or device[0].is_slice


def test_a_lost_gpu_stays_in_the_list():
    lost = Card(BUSY, uuid="GPU-2", index=1, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    first, second = (gpu for gpu, _ in all_gpus(RecordedNvml(Card(BUSY), lost)))
    assert first.lost is None and second.lost == "NVML_ERROR_GPU_IS_LOST" and second.index == 1


def test_a_gpu_of_another_container_is_not_ours_to_see():
    """NVML counts every card, and refuses a handle of those that the device cgroup denies."""
    denied = Card(BUSY, uuid="GPU-1", index=0, lost=pynvml.NVML_ERROR_NO_PERMISSION)
    machine = RecordedNvml(denied, Card(BUSY, uuid="GPU-2", index=1))
    assert [gpu.uuid for gpu, _ in all_gpus(machine)] == ["GPU-2"]


def test_an_error_of_the_binding_is_no_answer():
    def breaks():
        raise pynvml.NVMLLibraryMismatchError("it is no NVMLError")

    assert offered(breaks) is None
