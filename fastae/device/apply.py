"""Applies chosen hardware to this process: GPU, TF32, cuDNN, determinism, compilers, glibc's allocator."""

from __future__ import annotations

import os
import sys

import torch

from fastae.device.choose import Hardware
from fastae.utils.limits import keep_freed_memory
from fastae.utils.ranks import rank_cores


def apply(hardware: Hardware) -> None:
    """Makes this process compute as chosen. A later call replaces the settings of an earlier one."""
    use_device(hardware.device)
    use_tf32(hardware.device)
    use_kernels(hardware.device, hardware.deterministic)
    if hardware.compiled:
        share_cores()
    if hardware.device.type == "cpu":
        keep_freed_memory()


def use_device(device: torch.device) -> torch.device:
    """Makes a GPU this thread's current device, on which streams, events and CUDA graphs are made.

    Returns the same device, for use in expressions.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    return device


def use_tf32(device: torch.device) -> None:
    """Makes a GPU that supports TF32 use it for convolutions and matrix products in float32."""
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def use_kernels(device: torch.device, deterministic: bool) -> None:
    """Selects a GPU's fastest kernels, or deterministic ones, which give the same bits from the same seed."""
    torch.use_deterministic_algorithms(deterministic)  # also if False: an earlier run may have set it
    if device.type == "cuda" and (deterministic or "torch._inductor.config" in sys.modules):
        import torch._inductor.config as inductor  # the import takes a second

        inductor.deterministic = deterministic  # otherwise timings decide how kernels reduce and pad
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic or device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic


def share_cores() -> None:
    """Makes this machine's ranks share its cores while they compile, unless the user has set a number."""
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        import torch._inductor.config as inductor

        inductor.compile_threads = min(rank_cores(), inductor.compile_threads or 32)
