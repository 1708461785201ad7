"""Opens NVML, NVIDIA's management library, and finds the GPUs that a process uses.

The parameter `library` of the functions is the module `pynvml` (package nvidia-ml-py) or, in tests, a
recording of its answers. Constants and exceptions are always `pynvml`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from fastae.errors import FastaeError

Answer = TypeVar("Answer")

ERROR_NAMES = {getattr(pynvml, name): name for name in dir(pynvml) if name.startswith("NVML_ERROR_")}
"""NVML's number of an error -> its name."""

WSL_DEVICE = Path("/dev/dxg")
"""The device through which WSL 2 gives access to GPUs, with the driver of Windows."""


NO_NVML = (
    "NVML (libnvidia-ml.so.1) is missing here; a container needs the driver capability 'utility': "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)
NO_NVML_IN_WSL = "NVML is missing; in WSL it comes with NVIDIA's driver for Windows, in /usr/lib/wsl/lib"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG slice of one."""

    index: int
    """The index of the board in the order of the PCI bus."""

    name: str
    uuid: str = ""

    is_slice: bool = False
    """Whether this is a MIG slice."""

    memory_gib: float | None = None

    power_limit: float | None = None
    """The enforced limit of the power, in watts."""

    default_power_limit: float | None = None
    """The limit of the power that the card has unless it is changed, in watts."""

    max_sm_clock: float | None = None
    """The highest clock of the SMs, in MHz."""

    max_pcie_width: int | None = None
    """The most PCIe lanes that card and machine support."""

    capability: tuple[int, int] | None = None
    """The compute capability, (major, minor)."""

    lost: str | None = None
    """NVML's error if the GPU answers no call."""


Device = tuple[Gpu, Any]
"""A GPU and its handle in NVML."""


class NvmlError(FastaeError):
    """NVML cannot be used."""

    def __init__(self, code: str) -> None:
        """`code` is NVML's name of the error."""
        self.code = code
        self.is_installed = code != "NVML_ERROR_LIBRARY_NOT_FOUND"
        text = "NVML does not answer"
        if not self.is_installed:
            text = NO_NVML_IN_WSL if in_wsl() else NO_NVML
        super().__init__(f"{text} ({code})")


def open_nvml(library: Any = pynvml) -> Any:
    """Initialises NVML and returns the library. The caller must call nvmlShutdown at the end.

    Raises NvmlError if NVML is not installed or does not answer.
    """
    try:
        library.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlError(error_name(error)) from None
    return library


def has_nvml() -> bool:
    """Returns whether NVML is installed and can be initialised."""
    try:
        open_nvml().nvmlShutdown()
    except NvmlError:
        return False
    return True


def in_wsl() -> bool:
    """Returns whether this process runs in the Windows Subsystem for Linux."""
    return WSL_DEVICE.exists()


def all_gpus(library: Any) -> list[Device]:
    """Returns every GPU that NVML shows, in the order of the PCI bus, including lost ones."""
    found: list[Device] = []
    for index in range(offered(library.nvmlDeviceGetCount) or 0):
        try:
            found.append(_describe(library, index, library.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError as error:
            # A GPU that this process may not use belongs to another container.
            if error.value != pynvml.NVML_ERROR_NO_PERMISSION:
                found.append((Gpu(index, f"GPU {index}", lost=error_name(error)), None))
    return found


def gpu_of_cuda(library: Any, uuid: str, visible: str | None) -> Device | None:
    """Returns the GPU or MIG slice that CUDA uses; None if NVML does not show it.

    CUDA may report the board's UUID for a slice. Then the slice must be named in `visible`, unless the board
    has only one slice, so that the slice of another process is never returned.

    Args:
        library: NVML.
        uuid: the UUID that CUDA reports, without a prefix.
        visible: the value of CUDA_VISIBLE_DEVICES, if it is set.
    """
    device = _by_uuid(library, f"MIG-{uuid}") or _by_uuid(library, f"GPU-{uuid}")
    if device is None:
        return None
    slices = _slices(library, device)
    named = [each for each in slices if each[0].uuid in (visible or "").replace(" ", "").split(",")]
    chosen = named or slices or [device]
    return chosen[0] if len(chosen) == 1 else None


def error_name(error: Exception) -> str:
    """Returns NVML's name of the error, such as NVML_ERROR_NOT_SUPPORTED, or the name of its class."""
    if not isinstance(error, pynvml.NVMLError):
        return type(error).__name__  # pynvml also raises other classes, such as NVMLLibraryMismatchError
    return ERROR_NAMES.get(error.value, f"NVML error {error.value}")


def offered(function: Callable[..., Answer], *arguments: Any) -> Answer | None:
    """Calls a function of NVML; returns None if this card or driver does not support it."""
    try:
        return function(*arguments)
    except Exception:  # pynvml also raises other classes, such as NVMLLibraryMismatchError
        return None


def _by_uuid(library: Any, uuid: str) -> Device | None:
    """Returns the GPU (GPU-...) or MIG slice (MIG-...) with this UUID; None if NVML does not show it."""
    handle = offered(library.nvmlDeviceGetHandleByUUID, uuid)
    if handle is None:
        return None
    is_slice = uuid.startswith("MIG-")
    board = offered(library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if is_slice else handle
    index = offered(library.nvmlDeviceGetIndex, board) or 0
    return _describe(library, index, handle, is_slice=is_slice)


def _slices(library: Any, device: Device) -> list[Device]:
    """Returns the MIG slices of a board; [] if the board is not in MIG mode, or is a slice itself."""
    gpu, handle = device
    if gpu.is_slice:
        return []
    count = offered(library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    slices = (offered(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count))
    return [_describe(library, gpu.index, each, is_slice=True) for each in slices if each is not None]


def _describe(library: Any, index: int, handle: Any, is_slice: bool = False) -> Device:
    """Returns a GPU or slice, described by what NVML reports, and its handle."""
    memory = offered(library.nvmlDeviceGetMemoryInfo, handle)
    limit = offered(library.nvmlDeviceGetEnforcedPowerLimit, handle)  # milliwatts
    default_limit = offered(library.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    gpu = Gpu(
        index=index,
        name=offered(library.nvmlDeviceGetName, handle) or "a GPU without a name",
        uuid=offered(library.nvmlDeviceGetUUID, handle) or "",
        is_slice=is_slice,
        memory_gib=memory.total / 2**30 if memory else None,
        power_limit=limit / 1e3 if limit else None,
        default_power_limit=default_limit / 1e3 if default_limit else None,
        max_sm_clock=offered(library.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        max_pcie_width=offered(library.nvmlDeviceGetMaxPcieLinkWidth, handle),
        capability=offered(library.nvmlDeviceGetCudaComputeCapability, handle),
    )
    return gpu, handle
