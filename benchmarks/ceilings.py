"""What the device can do at best: the rates of a matrix product and of a copy, measured here and now."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from fastae.device import Precision, has_tf32

SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of matrix products in the step's precision, bytes/s (read and written) of a large copy.

    dtype: 'TF32' for float32 on a GPU that has it: the step multiplies in that, and so must its ceiling.
    """

    flops: float
    bandwidth: float
    dtype: str


def measure(device: torch.device, precision: Precision) -> Ceilings:
    """The best of several repeats: a ceiling is not an average."""
    dtype = precision.dtype or torch.float32
    name = "TF32" if dtype is torch.float32 and has_tf32(device) else str(dtype).removeprefix("torch.")
    kind = device.type
    side = SIDE[kind]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _fastest(lambda: torch.mm(a, b), device)
    copy = _fastest(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product, 2 * COPY_BYTES[kind] / copy, name)


def _fastest(work: object, device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 2):
        _synchronise(device)
        started = time.perf_counter()
        work()  # type: ignore[operator]
        _synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times[2:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
