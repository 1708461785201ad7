"""What NVIDIA's datasheets promise of a GPU: peak FLOP/s and the bandwidth of its memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from fastae.device.choose import Precision


@dataclass(frozen=True)
class Card:
    """A GPU by its datasheet."""

    name: str

    pattern: str
    """A regular expression that matches the whole name in CUDA, without NVIDIA, Tesla or GeForce."""

    half: float
    """FLOP/s of dense matrix products in bf16, or fp16 before Ampere, accumulated in float32."""

    single: float
    """FLOP/s of dense matrix products in TF32, or float32 before Ampere."""

    bandwidth: float
    """Of the memory, in bytes/s."""


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


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of matrix products that a GPU's datasheet promises in this precision; None if not known."""
    card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card is None:
        return None
    return card.single if precision.dtype is None else card.half
