"""Chooses what a program computes on, and how. Nothing here changes the process: `apply` does."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass

import torch

from fastae.device.compiling import choose_compile
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
        """fp16 has five exponent bits: small gradients vanish unless the loss is scaled up."""
        return self.dtype is torch.float16

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)


@dataclass(frozen=True)
class Hardware:
    """What runs compute on, and how."""

    device: torch.device
    precision: Precision

    compiled: bool
    """Whether torch.compile is used."""

    compile_note: str
    """Whether it is used, and why, in words."""

    deterministic: bool = False
    """Whether a GPU gives the same bits from the same seed, as a CPU does anyway."""


def choose_hardware(
    name: str,
    *,
    amp: bool,
    compile: bool | None,
    deterministic: bool,
    images: int,
    minutes: float | None,
) -> Hardware:
    """Chooses the hardware of training runs.

    Args:
        name: auto, cpu, cuda or cuda:N.
        amp: whether mixed precision is wanted.
        compile: whether torch.compile is wanted; None for whatever is faster.
        deterministic: whether a GPU must give the same bits from the same seed.
        images: how many images a run trains on.
        minutes: how long a run lasts at most; None if that is not limited.

    Raises:
        SettingError: the device is not there, or what compiling needs is missing.
    """
    device = choose_device(name)
    compiled, note = choose_compile(compile, device, images, minutes or math.inf)
    return Hardware(device, choose_precision(device, amp), compiled, note, deterministic)


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; None or `auto` is CUDA's current device if it works, else the CPU.

    Raises SettingError for a device that is not there.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() and _cuda_works() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise SettingError("device", f"{name!r:.60} is not one of: auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise SettingError("device", f"{device} is not supported: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        why = "no usable NVIDIA driver" if torch.version.cuda else "this PyTorch is a CPU build"
        raise SettingError("device", f"{device} cannot be used ({why}): use cpu or auto")
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise SettingError("device", f"{device} is not there: there are {count} CUDA devices, from cuda:0")
    return device


def choose_device(name: str) -> torch.device:
    """`find_device` for a program's main work: without a number, the first GPU."""
    device = find_device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _cuda_works() -> bool:
    """Whether the GPU runs a kernel: PyTorch may have none for it, or another process may own it."""
    try:
        return torch.ones(1, device="cuda").sum().item() == 1
    except (RuntimeError, AssertionError):  # the latter from a CPU build
        return False


def choose_precision(device: torch.device, amp: bool) -> Precision:
    """bf16 if the device multiplies it natively, else fp16 on CUDA, else float32 with a note.

    A GPU that has TF32 uses it for the convolutions and matrix products that stay float32.
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
    return Precision(None, "float32: --amp brings nothing on this CPU (no AVX512-BF16 or AMX)")


def is_ampere(device: torch.device) -> bool:
    """Whether this is a GPU of NVIDIA's Ampere generation or a newer one, which multiply in bf16 and TF32.

    TF32 is float32 rounded to 10 bits of mantissa.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def describe(device: torch.device) -> str:
    """The device's name for people: 'NVIDIA H100 80GB HBM3' or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
