"""What the device can do: which device, which precision, whether compiling pays."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from fastae.errors import FastaeError, SettingError
from fastae.utils import limits

# On a CPU compiling takes about 25 s and saves 5-10 % of each step (2 cores, AVX512-BF16, some 40 images/s):
# a run shorter than either of these would end later with it.
CPU_COMPILE_FROM_IMAGES = 20_000
CPU_COMPILE_FROM_MINUTES = 8
CPU = torch.device("cpu")


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
    """`find_device` for a program's main work; without a number, the first GPU.

    A GPU becomes this thread's current device, on which streams, events and CUDA graphs are made.
    """
    device = find_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device.index)
    return device


def _cuda_works() -> bool:
    """Whether the GPU runs a kernel: PyTorch may have none for it, or another process may own it."""
    try:
        return torch.ones(1, device="cuda").sum().item() == 1
    except (RuntimeError, AssertionError):  # the latter from a CPU build
        return False


def require_temporary_folder() -> None:
    """Raises FastaeError if no temporary folder is writable: PyTorch's compiler, which even runs that do not
    compile import, keeps its kernels below it unless a variable names another place."""
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            raise FastaeError("no temporary folder is writable: set TMPDIR to a folder of your own") from None


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Has this process use a GPU's fastest kernels, or deterministic ones.

    deterministic: the same bits from the same seed on a GPU, as on a CPU anyway.
    """
    torch.use_deterministic_algorithms(deterministic)  # off, too: an earlier run may have had it on
    if device.type == "cuda" and (deterministic or "torch._inductor.config" in sys.modules):
        import torch._inductor.config as inductor  # takes a second

        inductor.deterministic = deterministic  # otherwise timings decide how it reduces and pads
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

    wanted: what the user chose, None for whatever is faster. Raises FastaeError if it was chosen, and what
    compiling needs is missing.
    """
    missing = missing_to_compile(device)
    if wanted and missing:
        raise SettingError("compile", f"needs {missing}: install that, or use --no-compile")
    if wanted is None and missing:
        return False, f"not compiled (missing: {missing})"
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


def can_compile(device: torch.device = CPU) -> bool:
    """Whether all is here that torch.compile needs for this device."""
    return not missing_to_compile(device)


def missing_to_compile(device: torch.device) -> str:
    """What torch.compile needs and is not installed, in words; "" if nothing is missing.

    A C++ compiler for any device. For a GPU Triton too, which compiles C that includes Python.h.
    """
    missing = [] if shutil.which(compiler()) else [f"the C++ compiler {compiler()!r}"]
    if device.type == "cuda":
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        if not any(map(shutil.which, names)):
            missing.append(f"the C compiler {' or '.join(map(repr, names))}")
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            missing.append("Python.h (package python3-dev)")
        if not importlib.util.find_spec("triton"):
            missing.append("the Python package triton")
    return ", ".join(missing)


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def describe(device: torch.device) -> str:
    """The device's name for people: 'NVIDIA H100 80GB HBM3' or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
