"""Sets this process to what was chosen: the current GPU, TF32, cuDNN, determinism, glibc's memory."""

from __future__ import annotations

import os
import sys

import torch

from fastae.device.choose import Hardware
from fastae.utils.limits import keep_freed_memory


def apply(hardware: Hardware) -> None:
    """Has this process compute as chosen. A later call replaces what an earlier one has set."""
    use_device(hardware.device)
    use_tf32(hardware.device)
    use_kernels(hardware.device, hardware.deterministic)
    if hardware.device.type == "cpu":
        keep_freed_memory()


def use_device(device: torch.device) -> torch.device:
    """Makes a GPU this thread's current device, on which streams, events and CUDA graphs are made.

    Returns the device.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    return device


def use_tf32(device: torch.device) -> None:
    """Has a GPU use TF32, if it has that, for convolutions and matrix products in float32."""
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def use_kernels(device: torch.device, deterministic: bool) -> None:
    """Uses a GPU's fastest kernels, or deterministic ones, which give the same bits from the same seed."""
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
