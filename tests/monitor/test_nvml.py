"""Opens NVML, and finds the GPUs that a process uses."""

import pynvml
import pytest

from fastae.device import nvml
from fastae.device.nvml import NvmlError, all_gpus, gpu_of_cuda, offered, open_nvml

from .recorded_nvml import BUSY, IDLE, SLICE, Card, RecordedNvml, mig_machine


@pytest.mark.parametrize(
    ("code", "in_wsl", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False, "utility"),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, True, "WSL"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, False, "does not answer"),
    ],
)
def test_the_error_says_why_nvml_cannot_be_used(monkeypatch, tmp_path, code, in_wsl, words):
    monkeypatch.setattr(nvml, "WSL_DEVICE", tmp_path if in_wsl else tmp_path / "missing")
    with pytest.raises(NvmlError, match=words) as raised:
        open_nvml(RecordedNvml(absent=code))
    assert raised.value.code == nvml.ERROR_NAMES[code] in str(raised.value)


@pytest.fixture
def machine():
    """Two cards, and a MIG slice of a third that this process may not see."""
    board = Card(BUSY, uuid="GPU-hidden", index=None)
    return RecordedNvml(
        Card(IDLE, uuid="GPU-aaaa1111", index=0),
        Card(BUSY, uuid="GPU-bbbb2222", index=1),
        Card(SLICE, uuid="MIG-cccc3333", index=None, board=board),
    )


def test_a_gpu_is_found_by_the_uuid_that_cuda_reports(machine):
    gpu, _ = gpu_of_cuda(machine, "bbbb2222", None)
    assert (gpu.uuid, gpu.memory_gib, gpu.power_limit, gpu.is_slice) == ("GPU-bbbb2222", 80.0, 700.0, False)
    assert gpu.index == 1, "it is the index of nvidia-smi"
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
def test_a_slice_is_found_and_its_board_is_never_returned_instead(names, uuid, visible, found):
    device = gpu_of_cuda(mig_machine(names=names), uuid, visible)
    assert (device and device[0].uuid) == found
    assert device is None or device[0].is_slice


def test_a_lost_gpu_is_listed_but_a_gpu_of_another_container_is_not():
    """NVML counts every card, but refuses the handles of cards that the device cgroup denies."""
    denied = Card(BUSY, uuid="GPU-1", index=0, lost=pynvml.NVML_ERROR_NO_PERMISSION)
    lost = Card(BUSY, uuid="GPU-3", index=2, lost=pynvml.NVML_ERROR_GPU_IS_LOST)
    machine = RecordedNvml(denied, Card(BUSY, uuid="GPU-2", index=1), lost)
    found = [(gpu.index, gpu.lost) for gpu, _ in all_gpus(machine)]
    assert found == [(1, None), (2, "NVML_ERROR_GPU_IS_LOST")]


def test_an_error_of_the_python_binding_counts_as_no_answer():
    def breaks():
        raise pynvml.NVMLLibraryMismatchError("it is not an NVMLError")

    assert offered(breaks) is None
