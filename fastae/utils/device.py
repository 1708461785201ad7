"""What the device can do: which device, which precision, whether compiling pays."""

from __future__ import annotations

import math
import os
import platform
import shutil
from dataclasses import dataclass

import torch

from fastae.errors import FastaeError

# Compiling costs a CPU about 25 s before the first step and saves it 5-10 % of each (2 cores,
# AVX512-BF16, some 40 images/s): a run shorter than either would end later for it.
CPU_COMPILE_FROM_IMAGES = 20_000
CPU_COMPILE_FROM_MINUTES = 8


@dataclass(frozen=True)
class Precision:
    """dtype: of convolutions and matrix products under autocast, None for plain float32."""

    dtype: torch.dtype | None
    note: str

    @property
    def needs_scaling(self) -> bool:
        """fp16 has five exponent bits: small gradients vanish unless the loss is scaled up."""
        return self.dtype is torch.float16

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, if there is one. Raises FastaeError for one that is not there.

    A GPU becomes this thread's current one: streams, events and CUDA graphs are made on that.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FastaeError(f"--device {name!r} is not one of: auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise FastaeError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        why = "no usable NVIDIA driver" if torch.version.cuda else "this PyTorch is a CPU build"
        raise FastaeError(f"--device {name}: {why}; use --device cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise FastaeError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Which of several kernels this process runs: on a GPU the fastest, or always the same.

    deterministic: the same bits from the same seed on a GPU too; a CPU gives them anyway.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = 0  # no limit: all of cuDNN's engines are tried


def choose_precision(device: torch.device, amp: bool) -> Precision:
    """bf16 where the device multiplies it natively, else fp16 on CUDA, else float32 with a note.

    What stays float32 on a GPU is multiplied in TF32, where it has that: convolutions and matrix products.
    """
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if not amp:
        return Precision(None, "TF32" if has_tf32(device) else "float32")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16 AMP")
        return Precision(torch.float16, "fp16 AMP with loss scaling (no native bf16)")
    features = torch.cpu.get_capabilities()
    for feature, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if features.get(feature):
            return Precision(torch.bfloat16, f"bf16 AMP ({name})")
    return Precision(None, "float32: --amp brings nothing on this CPU (no AVX512-BF16 or AMX)")


def has_tf32(device: torch.device) -> bool:
    """Whether it can multiply float32 in TF32, rounded to 10 bits of mantissa: Ampere or newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_compile(
    wanted: bool | None, device: torch.device, images: int, minutes: float = math.inf
) -> tuple[bool, str]:
    """Whether to compile a run over this many images, or minutes, and the reason in words.

    Raises FastaeError if `--compile` was asked for and no C++ compiler is there.
    """
    if wanted and not can_compile():
        raise FastaeError(f"--compile needs the C++ compiler {compiler()!r}, which is not on the PATH")
    if wanted is not None:
        return wanted, "compiled" if wanted else "not compiled"
    if not can_compile():
        return False, f"not compiled (no C++ compiler {compiler()!r})"
    if device.type == "cuda":
        return True, "compiled"
    if images < CPU_COMPILE_FROM_IMAGES or minutes < CPU_COMPILE_FROM_MINUTES:
        return False, "not compiled (a run this short would not earn it back)"
    return True, "compiled"


def can_compile() -> bool:
    """Whether torch.compile will find the C++ compiler that it needs on every device."""
    return shutil.which(compiler()) is not None


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def uuid(device: torch.device) -> str | None:
    """The GPU's UUID as NVML writes it, 'GPU-...'; None for a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def describe(device: torch.device) -> str:
    """The device's name, for people: 'NVIDIA H100 80GB HBM3' or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
