"""Chooses the device that a program computes on, and how. `apply` then applies the choice to the process."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from fastae.device.compatibility import cuda_error
from fastae.errors import SettingError


@dataclass(frozen=True)
class Precision:
    """The precision of a model's arithmetic."""

    dtype: torch.dtype | None
    """The type of convolutions and matrix products under autocast; None for float32."""

    note: str
    """The precision in words."""

    @property
    def needs_scaling(self) -> bool:
        """Whether the loss must be scaled up: with five exponent bits, fp16 loses small gradients."""
        return self.dtype is torch.float16

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns a context in which operations on this device have this precision."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)


@dataclass(frozen=True)
class Hardware:
    """The device that runs compute on, and how it is used."""

    device: torch.device
    precision: Precision

    compiled: bool
    """Whether torch.compile is used."""

    compile_note: str
    """Whether torch.compile is used, and if not, why, in words."""

    deterministic: bool = False
    """Whether a GPU gives the same bits from the same seed. A CPU always does."""


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Returns the device of this name; for None or 'auto', CUDA's current device if it works, else the CPU.

    Raises SettingError if the device does not exist.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() and not cuda_error() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingError("device", f"{name!r:.60} is not one of: auto, cpu, cuda, cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "no usable NVIDIA driver" if torch.version.cuda else "this PyTorch is a CPU build"
        raise SettingError("device", f"{device} cannot be used ({why}): use cpu or auto")
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise SettingError("device", f"{device} does not exist (CUDA devices: {count}): use cuda:0")
    return device


def choose_device(name: str) -> torch.device:
    """Returns the device that `find_device` finds, but the first GPU if the name has no number."""
    device = find_device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_precision(device: torch.device, amp: bool) -> Precision:
    """Returns bf16 if the device supports it natively, else fp16 on a GPU and float32 on a CPU.

    Without `amp` it is float32. A GPU that supports TF32 uses it for float32 products.
    """
    if not amp:
        return Precision(None, "TF32" if is_ampere(device) else "float32")
    if device.type == "cuda":
        if is_ampere(device):
            return Precision(torch.bfloat16, "bf16 AMP")
        return Precision(torch.float16, "fp16 AMP with loss scaling (no native bf16)")
    features = torch.cpu.get_capabilities()
    for feature, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if features.get(feature):
            return Precision(torch.bfloat16, f"bf16 AMP ({name})")
    return Precision(None, "float32: --amp has no effect on this CPU (no AVX512-BF16 or AMX)")


def is_ampere(device: torch.device) -> bool:
    """Returns whether this is a GPU of NVIDIA's Ampere generation or newer, which support bf16 and TF32.

    TF32 is float32 rounded to 10 bits of mantissa.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def device_name(device: torch.device) -> str:
    """Returns the device's name in words: 'NVIDIA H100 80GB HBM3' or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
