"""NVML, NVIDIA's management library: opened, and the GPUs that a process uses found in it.

The functions come from the module `library`, which is `pynvml` (package nvidia-ml-py) or, in tests, a
recorded one in its place. Constants and exceptions are always `pynvml`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pynvml

from fastae.errors import FastaeError

Answer = TypeVar("Answer")

ERROR_NAMES = {
    getattr(pynvml, name): name for name in dir(pynvml) if name.startswith("NVML_ERROR_")
}  # fmt: skip
GONE = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
)
"""After one of these a GPU answers nothing any more."""


@dataclass(frozen=True)
class Gpu:
    """A GPU or a MIG instance. `index`: its place among those listed; `power_limit`: watts."""

    index: int
    name: str
    uuid: str
    memory_gib: float | None = None
    power_limit: float | None = None
    handle: Any = field(default=None, repr=False, compare=False)


def open_nvml(library: Any = pynvml) -> Any:
    """Starts NVML and returns the library. Raises FastaeError where there is no driver to talk to."""
    try:
        library.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise FastaeError("no NVIDIA driver was found (there is no libnvidia-ml.so.1)") from None
        raise FastaeError(f"the NVIDIA driver does not answer: {error_name(error)}") from None
    return library


def close_nvml(library: Any) -> None:
    """Undoes one `open_nvml`; an error here is of no use to anyone."""
    offered(library.nvmlShutdown)


def all_gpus(library: Any) -> list[Gpu]:
    """Every GPU that NVML shows, in the order of the PCI bus."""
    count = offered(library.nvmlDeviceGetCount) or 0
    handles = [offered(library.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    return [_describe(library, index, handle) for index, handle in enumerate(handles) if handle is not None]


def visible_gpus(library: Any, visible: str | None) -> list[Gpu]:
    """The GPUs that CUDA shows to a process whose CUDA_VISIBLE_DEVICES is `visible`, in its order.

    An entry is an index, the beginning of a GPU's UUID, or a MIG instance's UUID; the list ends at the
    first entry that names nothing, as CUDA's does. Indices are those of the PCI bus, which are CUDA's
    where all cards are of one kind, or CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    machine = all_gpus(library)
    if visible is None:
        return machine
    found: list[Gpu] = []
    for entry in visible.split(","):
        handle = _handle_of(library, machine, entry.strip())
        if handle is None:
            break
        found.append(_describe(library, len(found), handle))
    return found


def gpu_by_uuid(library: Any, uuid: str) -> Gpu | None:
    handle = offered(library.nvmlDeviceGetHandleByUUID, uuid)
    return None if handle is None else _describe(library, 0, handle)


def error_name(error: pynvml.NVMLError) -> str:
    """The name in NVML's manual: NVML_ERROR_NOT_SUPPORTED."""
    return ERROR_NAMES.get(error.value, f"NVML error {error.value}")


def offered(function: Callable[..., Answer], *arguments: Any) -> Answer | None:
    """What the call returns, or None where this card or driver does not offer it."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _handle_of(library: Any, machine: list[Gpu], entry: str) -> Any:
    if entry.isdecimal():
        return next((gpu.handle for gpu in machine if gpu.index == int(entry)), None)
    if entry.startswith("MIG-"):
        return offered(library.nvmlDeviceGetHandleByUUID, entry)
    alike = [gpu.handle for gpu in machine if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return alike[0] if len(alike) == 1 else None


def _describe(library: Any, index: int, handle: Any) -> Gpu:
    memory = offered(library.nvmlDeviceGetMemoryInfo, handle)
    limit = offered(library.nvmlDeviceGetEnforcedPowerLimit, handle)  # milliwatts
    return Gpu(
        index=index,
        name=offered(library.nvmlDeviceGetName, handle) or "a GPU without a name",
        uuid=offered(library.nvmlDeviceGetUUID, handle) or "",
        memory_gib=memory.total / 2**30 if memory else None,
        power_limit=limit / 1e3 if limit else None,
        handle=handle,
    )
