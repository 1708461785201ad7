"""How much memory there is, on the host or on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` without pushing anything out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _meminfo("MemAvailable")


def total_bytes(device: torch.device) -> int:
    """Bytes that `device` has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int:
    for line in MEMINFO.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{MEMINFO} does not tell {name}")
