"""What the device can do: which device, which precision, whether compiling pays."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from dataclasses import dataclass

import torch

from fastae.errors import FastaeError
from fastae.utils import limits

# On a CPU compiling takes about 25 s and saves 5-10 % of each step (2 cores, AVX512-BF16, some 40 images/s):
# a run shorter than either of these would end later with it.
CPU_COMPILE_FROM_IMAGES = 20_000
CPU_COMPILE_FROM_MINUTES = 8


@dataclass(frozen=True)
class Card:
    """A GPU by its datasheet. pattern: what its name in CUDA matches. half: dense matrix products in bf16,
    or fp16 before Ampere, accumulated in float32, in FLOP/s. single: the same in TF32, or in float32 before
    Ampere. bandwidth: of its memory, bytes/s."""

    name: str
    pattern: str
    half: float
    single: float
    bandwidth: float


# NVIDIA's datasheet of each card ("NVIDIA H100 Tensor Core GPU", "NVIDIA T4 Tensor Core GPU", ...), and for
# GeForce the whitepapers of GA102, AD102 and RTX Blackwell. Where a table gives rates "with sparsity", half.
CARDS = (
    Card("T4", r"T4", 65e12, 8.1e12, 0.32e12),
    Card("V100 SXM2", r"V100-SXM2-\d+GB", 125e12, 15.7e12, 0.9e12),
    Card("A10", r"A10", 125e12, 62.5e12, 0.6e12),
    Card("L4", r"L4", 121e12, 60e12, 0.3e12),
    Card("L40S", r"L40S", 362e12, 183e12, 0.864e12),
    Card("RTX 3090", r"RTX 3090", 71e12, 35.6e12, 0.936e12),
    Card("RTX 4090", r"RTX 4090", 165e12, 82.6e12, 1.008e12),
    Card("RTX 5090", r"RTX 5090", 209.5e12, 104.8e12, 1.792e12),
    Card("A100 SXM 80 GB", r"A100[- ].*", 312e12, 156e12, 2.039e12),
    Card("H100 PCIe", r"H100 PCIe", 756e12, 378e12, 2.0e12),
    Card("H100 NVL", r"H100 NVL", 835e12, 417e12, 3.9e12),
    Card("H100 SXM", r"H100 80GB HBM3", 989e12, 494e12, 3.35e12),
    Card("H200", r"H200", 989e12, 494e12, 4.8e12),
    Card("B200", r"B200", 2250e12, 1125e12, 8.0e12),
)


def find_card(name: str) -> Card | None:
    """The card of this name, as CUDA gives it: the whole name, so that no laptop's card, MIG slice or later
    variant passes for another."""
    if " MIG " in name:
        return None
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    return next((card for card in CARDS if re.fullmatch(card.pattern, short)), None)


@dataclass(frozen=True)
class Precision:
    """dtype: of convolutions and matrix products under autocast; None for float32. note: for people."""

    dtype: torch.dtype | None
    note: str

    @property
    def needs_scaling(self) -> bool:
        """fp16 has five exponent bits: small gradients vanish unless the loss is scaled up."""
        return self.dtype is torch.float16

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if it works, else the CPU. Raises FastaeError for a missing device.

    A GPU becomes this thread's current device, on which streams, events and CUDA graphs are made.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and _cuda_works() else "cpu"
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


def _cuda_works() -> bool:
    """Whether the GPU runs a kernel: PyTorch may have none for it, or another process may own it."""
    try:
        return torch.ones(1, device="cuda").sum().item() == 1
    except (RuntimeError, AssertionError):  # the latter from a CPU build
        return False


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Has this process use a GPU's fastest kernels, or deterministic ones.

    deterministic: the same bits from the same seed on a GPU, as on a CPU anyway.
    """
    torch.use_deterministic_algorithms(deterministic)  # off, too: an earlier run may have had it on
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = 0  # no limit: all of cuDNN's algorithms are tried


def choose_precision(device: torch.device, amp: bool) -> Precision:
    """bf16 if the device multiplies it natively, else fp16 on CUDA, else float32 with a note.

    A GPU that has TF32 uses it for the convolutions and matrix products that stay float32.
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
    """Whether it multiplies float32 rounded to 10 bits of mantissa: Ampere or newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_compile(
    wanted: bool | None, device: torch.device, images: int, minutes: float = math.inf
) -> tuple[bool, str]:
    """Whether to compile a run over this many images, or minutes, and a note for people.

    wanted: what the user chose, None for whatever is faster. Raises FastaeError without a C++ compiler.
    """
    if wanted and not can_compile():
        raise FastaeError(f"--compile needs the C++ compiler {compiler()!r}, which is not on the PATH")
    if wanted is None and not can_compile():
        return False, f"not compiled (no C++ compiler {compiler()!r})"
    is_short = images < CPU_COMPILE_FROM_IMAGES or minutes < CPU_COMPILE_FROM_MINUTES
    if wanted is None and device.type == "cpu" and is_short:
        return False, "torch.compile off: run too short to amortise compilation"
    return wanted is not False, "compiled" if wanted is not False else "not compiled"


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` without pushing anything out."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else limits.free_bytes()


def total_memory(device: torch.device) -> int:
    """Bytes that `device` has."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else limits.total_bytes()


def peak_memory() -> tuple[int, int] | None:
    """The most bytes that PyTorch's allocator has given out and reserved on the current GPU; None without."""
    if not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of matrix products that a GPU's datasheet promises in this precision; None if not known."""
    card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card is None:
        return None
    return card.single if precision.dtype is None else card.half


def can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs for any device."""
    return shutil.which(compiler()) is not None


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def describe(device: torch.device) -> str:
    """The device's name for people: 'NVIDIA H100 80GB HBM3' or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
