"""Finds a card by its name in CUDA, and its peak in the datasheet."""

import pytest
import torch

from fastae.device.cards import CARDS, find_card, peak_flops
from fastae.device.choose import Precision


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40 GB"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe"),
        ("Tesla V100S-PCIE-32GB", "V100S"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        # None of these has the peak of the card whose name it begins with.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM-64GB", None),  # Leonardo's own part
        ("GRID A100-10C", None),  # a slice of a virtual machine
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
    ],
)
def test_a_card_is_found_by_its_whole_name(name, card):
    found = find_card(name)
    assert (found and found.name) == card


def test_the_peak_depends_on_the_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda")
    assert peak_flops(cuda, Precision(torch.bfloat16, "")) == 989e12
    assert peak_flops(cuda, Precision(None, "")) == 494e12
    assert peak_flops(torch.device("cpu"), Precision(None, "")) is None
    assert all(card.half > card.single > 0 and card.bandwidth > 1e11 for card in CARDS)
