"""Whether driver, GPUs, PyTorch and DALI fit together: each is made for some versions of CUDA.

`python -m fastae.training.compatibility` refuses a mixture, for `make setup`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from fastae.monitor.nvml import NvmlError, all_gpus, offered, open_nvml
from fastae.monitor.recording import Absence, Gpu
from fastae.utils.environment import DALI_BUILDS, dali_builds

CUDA_13_FROM = (7, 5)  # compute capability: builds for CUDA 13 have no code for Volta and before

INSTALL = {
    13: "pip uninstall -y torch nvidia-dali-cuda120; pip install -c constraints.txt '.[cuda13]'",
    12: "pip uninstall -y torch nvidia-dali-cuda130; pip install -c constraints.txt --extra-index-url INDEX "
    "'.[cuda12]', where INDEX is the address that pytorch.org's install page shows for CUDA 12 "
    "(12.6 for cards before Turing)",
    None: "install a newer NVIDIA driver",
}
"""What to do for a version of CUDA; None if the driver is too old for both."""

NVIDIA_ON_PCI = "0x10de"

Capability = tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """What NVML says. `cuda`: the newest that it supports. capabilities: of each GPU; None if unknown."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...] = ()
    capabilities: tuple[Capability | None, ...] = ()

    @property
    def install(self) -> str:
        """The line that installs builds of PyTorch and DALI that run here."""
        is_old = any(each is not None and each < CUDA_13_FROM for each in self.capabilities)
        newest = min(self.cuda[0], 12 if is_old else 99)
        return INSTALL[next((major for major in DALI_BUILDS if major <= newest), None)]


def read_driver(library: Any = pynvml) -> Driver:
    """Raises NvmlError."""
    open_nvml(library)
    try:
        cuda = offered(library.nvmlSystemGetCudaDriverVersion) or 0
        devices = all_gpus(library)
        return Driver(
            offered(library.nvmlSystemGetDriverVersion) or "0",
            (cuda // 1000, cuda % 1000 // 10),
            tuple(gpu for gpu, _ in devices),
            tuple(offered(library.nvmlDeviceGetCudaComputeCapability, handle) for _, handle in devices),
        )
    finally:
        offered(library.nvmlShutdown)


def torch_cuda() -> int | None:
    """The major version of CUDA that PyTorch is built for; None for a CPU build."""
    import torch

    return int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None


def torch_mismatch(driver: Driver) -> str:
    """Why PyTorch cannot use the driver's GPUs; empty if it can."""
    import torch

    major = torch_cuda()
    if major is None:
        return "PyTorch is a CPU build"
    if major > driver.cuda[0]:
        newest = "{}.{}".format(*driver.cuda)
        return f"PyTorch needs CUDA {torch.version.cuda}, driver {driver.version} has {newest} at most"
    built = torch.cuda.get_arch_list()
    if built and driver.capabilities and not any(_runs(built, each) for each in driver.capabilities):
        found = ", ".join("{}.{}".format(*each) for each in driver.capabilities if each)
        return f"PyTorch has no code for compute capability {found}, only for {' '.join(built)}"
    return ""


def build_mismatch() -> str:
    """Why PyTorch and DALI are a mixture; empty if they are not."""
    ours, theirs = torch_cuda(), list(dali_builds())
    if len(theirs) > 1:
        return "two builds of DALI are installed, which provide the same module"
    if ours and theirs and theirs != [ours]:
        return f"PyTorch is built for CUDA {ours}, DALI for CUDA {theirs[0]}"
    return ""


def unusable_gpu_reason() -> str | None:
    """Why an NVIDIA GPU of this machine cannot be used by PyTorch, and the remedy, in one line.

    None if it can, or there is none, or CUDA_VISIBLE_DEVICES hides it.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        driver = read_driver()
    except NvmlError as error:
        if torch.cuda.is_available():
            return None
        if error.absence is Absence.NVML_FAILED:
            return f"the NVIDIA driver does not answer ({error.detail}): nvidia-smi shows why"
        if not has_nvidia_card():
            return None
        return "there is an NVIDIA GPU, but no driver: install it; start a container with --gpus all"
    if not driver.gpus:
        return None
    if mismatch := torch_mismatch(driver):
        return f"{mismatch}: {driver.install}"
    return None if torch.cuda.is_available() else "PyTorch finds no GPU: fastae doctor shows more"


def has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    vendors = devices.glob("*/vendor") if devices.is_dir() else ()
    return any(vendor.read_text().strip() == NVIDIA_ON_PCI for vendor in vendors)


def _runs(built: Sequence[str], capability: Capability | None) -> bool:
    """A GPU runs code of its major version up to its minor (sm_XY), and PTX up to its own (compute_XY)."""
    if capability is None:
        return True
    for architecture in built:
        kind, _, digits = architecture.rstrip("af").partition("_")
        major, minor = int(digits[:-1]), int(digits[-1])
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False


if __name__ == "__main__":
    if mismatch := build_mismatch():
        sys.exit(f"{mismatch}: make clean, then make setup again")
