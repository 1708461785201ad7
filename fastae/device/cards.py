"""The peak FLOP/s and memory bandwidth of GPUs, from NVIDIA's datasheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from fastae.device.choose import Precision


@dataclass(frozen=True)
class Card:
    """A GPU's figures, from its datasheet."""

    name: str

    pattern: str
    """A regular expression for the whole name in CUDA, without the words NVIDIA, Tesla and GeForce."""

    half: float
    """FLOP/s of dense matrix products in bf16, or fp16 before Ampere, accumulated in float32."""

    single: float
    """FLOP/s of dense matrix products in TF32, or float32 before Ampere."""

    bandwidth: float
    """The memory's bandwidth in bytes/s."""


# The figures are from NVIDIA's datasheet of each card ("NVIDIA H100 Tensor Core GPU", "NVIDIA T4 Tensor Core
# GPU", ...), and for GeForce from the whitepapers of GA102, AD102 and RTX Blackwell. If a table states a rate
# "with sparsity", half of it is the rate of dense products.
CARDS = (
    Card("T4", r"T4", half=65e12, single=8.1e12, bandwidth=0.32e12),
    Card("V100 PCIe", r"V100-PCIE-\d+GB", half=112e12, single=14e12, bandwidth=0.9e12),
    Card("V100 SXM2", r"V100-SXM2-\d+GB", half=125e12, single=15.7e12, bandwidth=0.9e12),
    Card("V100S", r"V100S-PCIE-32GB", half=130e12, single=16.4e12, bandwidth=1.134e12),
    Card("A10", r"A10", half=125e12, single=62.5e12, bandwidth=0.6e12),
    Card("A40", r"A40", half=149.7e12, single=74.8e12, bandwidth=0.696e12),
    Card("RTX A6000", r"RTX A6000", half=154.8e12, single=77.4e12, bandwidth=0.768e12),
    Card("L4", r"L4", half=121e12, single=60e12, bandwidth=0.3e12),
    Card("L40", r"L40", half=181e12, single=90.5e12, bandwidth=0.864e12),
    Card("L40S", r"L40S", half=362e12, single=183e12, bandwidth=0.864e12),
    Card("RTX 3090", r"RTX 3090", half=71e12, single=35.6e12, bandwidth=0.936e12),
    Card("RTX 4090", r"RTX 4090", half=165e12, single=82.6e12, bandwidth=1.008e12),
    # Unconfirmed: another table has twice these rates, which are those of accumulation in float16.
    Card("RTX 5090", r"RTX 5090", half=209.5e12, single=104.8e12, bandwidth=1.792e12),
    Card("A100 40 GB", r"A100-(SXM4|PCIE)-40GB", half=312e12, single=156e12, bandwidth=1.555e12),
    Card("A100 PCIe 80 GB", r"A100 80GB PCIe", half=312e12, single=156e12, bandwidth=1.935e12),
    Card("A100 SXM 80 GB", r"A100-SXM4-80GB", half=312e12, single=156e12, bandwidth=2.039e12),
    Card("H100 PCIe", r"H100 PCIe", half=756e12, single=378e12, bandwidth=2.0e12),
    Card("H100 NVL", r"H100 NVL", half=835e12, single=417e12, bandwidth=3.9e12),
    Card("H100 SXM", r"H100 80GB HBM3", half=989e12, single=494e12, bandwidth=3.35e12),
    Card("H200", r"H200", half=989e12, single=494e12, bandwidth=4.8e12),
    Card("H200 NVL", r"H200 NVL", half=835e12, single=418e12, bandwidth=4.8e12),
    Card("B200", r"B200", half=2250e12, single=1125e12, bandwidth=8.0e12),
    Card("GB200", r"GB200", half=2500e12, single=1250e12, bandwidth=8.0e12),
    Card("GB300", r"GB300", half=2500e12, single=1250e12, bandwidth=8.0e12),
)


def find_card(name: str) -> Card | None:
    """Returns the card with this name in CUDA; None if it is not known.

    The whole name must match, so that a laptop's card, a MIG slice or a later variant is not taken for
    another card.
    """
    if " MIG " in name:
        return None
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    return next((card for card in CARDS if re.fullmatch(card.pattern, short)), None)


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Returns a GPU's peak FLOP/s of matrix products in this precision; None if it is not known."""
    card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card is None:
        return None
    return card.single if precision.dtype is None else card.half
