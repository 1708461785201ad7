"""Measures the memory of a device, in bytes."""

from __future__ import annotations

import torch

from fastae.errors import FastaeError
from fastae.utils import limits


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether this error means that the memory of a device is used up."""
    return isinstance(error, torch.OutOfMemoryError) or limits.lacks_memory(error)


def require_room(needed: int, what: str, device: torch.device) -> None:
    """Raises FastaeError, naming `what`, if it needs more bytes than the device has in total."""
    total = total_memory(device)
    if needed > total:
        raise FastaeError(f"{what} takes {needed / 1e9:,.1f} GB, but {device} has {total / 1e9:.1f} GB")


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can be allocated on `device` now, without swapping."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else limits.free_bytes()


def total_memory(device: torch.device) -> int:
    """Returns the bytes that `device` has in total."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else limits.total_bytes()


def peak_memory() -> tuple[int, int] | None:
    """Returns the peaks of PyTorch's allocated and reserved memory on the current GPU; None without a GPU."""
    if not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
