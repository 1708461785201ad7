"""How much memory there is, on the host or on a GPU."""

from __future__ import annotations

import torch

from fastae.utils import memory as hostmemory


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` without pushing anything out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return hostmemory.free_bytes()


def total_bytes(device: torch.device) -> int:
    """Bytes that `device` has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return hostmemory.total_bytes()
