"""Whether driver, GPUs, PyTorch and DALI fit together: each is made for some versions of CUDA.

`python -m fastae.device.compatibility` refuses a mixture, for `make setup`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from fastae.device.nvml import Absence, Gpu, NvmlError, all_gpus, offered, open_nvml
from fastae.utils.console import printable
from fastae.utils.environment import dali_builds

CUDA_13_FROM = (7, 5)  # compute capability: builds for CUDA 13 have no code for Volta and before
BLACKWELL = (10, 0)  # PyTorch's builds for CUDA 12.6 have no code from here on
CUDA_13_DRIVER = 580  # the first for CUDA 13, and the last for Volta and before

CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"
"""Where PyTorch's builds for CUDA 12.6 are: up to 2.14; PyPI has those for CUDA 13."""

INSTALL = {
    13: "pip uninstall -y torch nvidia-dali-cuda120; pip install -c constraints.txt -e '.[cuda13]'",
    12: "pip uninstall -y torch nvidia-dali-cuda130; pip install -c constraints.txt "
    f"--extra-index-url {CUDA_12_INDEX} -e '.[cuda12]'",
}
"""What to do for a version of CUDA."""

INSTALL_DRIVER = "install NVIDIA's driver; in a container, on the host, and start it with --gpus all"
CONTAINER = "start the container with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
LOADED_DRIVER = Path("/proc/driver/nvidia/version")  # the host's, in a container too
REMEDIES = {
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "reboot: the driver was updated, and the old one is still loaded",
    "NVML_ERROR_DRIVER_NOT_LOADED": "sudo modprobe nvidia; if that fails, dkms status shows whether the "
    "module was built for this kernel, and mokutil --sb-state whether Secure Boot keeps it out",
}
"""By NVML's name of the error."""

NVIDIA_ON_PCI = "0x10de"

Capability = tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """What NVML says. `cuda`: the newest that it supports. capabilities: of each GPU. None if unknown."""

    version: str
    cuda: tuple[int, int] | None
    gpus: tuple[Gpu, ...] = ()
    capabilities: tuple[Capability | None, ...] = ()

    @property
    def newest_cuda(self) -> str:
        return "CUDA {}.{}".format(*self.cuda) if self.cuda else "an unknown version of CUDA"

    @property
    def install(self) -> str:
        """The line that installs builds of PyTorch and DALI that run here, or what they need first."""
        known = [each for each in self.capabilities if each]
        is_old, is_new = any(each < CUDA_13_FROM for each in known), any(each >= BLACKWELL for each in known)
        branch = int(self.version.partition(".")[0]) if self.version[:1].isdecimal() else CUDA_13_DRIVER
        major = self.cuda[0] if self.cuda else 13 if branch >= CUDA_13_DRIVER else 12
        if major >= 13 and (is_new or not is_old):
            return INSTALL[13]
        if major >= 12 and not is_new:
            return INSTALL[12]
        return f"install NVIDIA's driver {CUDA_13_DRIVER}{'' if is_old else ' or newer'}"


def read_driver(library: Any = pynvml) -> Driver:
    """Raises NvmlError."""
    open_nvml(library)
    try:
        cuda = offered(library.nvmlSystemGetCudaDriverVersion)
        devices = all_gpus(library)
        return Driver(
            offered(library.nvmlSystemGetDriverVersion) or "of an unknown version",
            (cuda // 1000, cuda % 1000 // 10) if cuda else None,
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
    if driver.cuda and major > driver.cuda[0]:
        newest = driver.newest_cuda
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
        if torch.cuda.is_available() or not (fault := missing_driver(error)):
            return None
        return f"{fault[0]}: {fault[1]}"
    if not driver.gpus:
        return None
    if mismatch := torch_mismatch(driver):
        return f"{mismatch}: {driver.install}"
    return ": ".join(cuda_fault() or ()) or None


def missing_driver(error: NvmlError) -> tuple[str, str] | None:
    """What is wrong with the driver if NVML cannot be used and CUDA does not work, and the remedy; None if
    there is no NVIDIA GPU."""
    if error.absence is Absence.NVML_FAILED:
        remedy = REMEDIES.get(error.detail, "nvidia-smi shows more")
        return f"the NVIDIA driver does not answer ({error.detail})", remedy
    if not has_nvidia_card():
        return None
    if LOADED_DRIVER.exists():
        return "the NVIDIA driver is loaded, but its libraries are missing here", CONTAINER
    return "there is an NVIDIA GPU, but no driver", INSTALL_DRIVER


def cuda_fault() -> tuple[str, str] | None:
    """What PyTorch says if it cannot use CUDA, in one line, and the remedy; None if it can."""
    import torch

    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a CPU build
        text = printable(str(error).splitlines()[0])
        # cudaErrorSystemNotReady: the switches between the GPUs of an HGX board.
        is_switched = "802" in text
        starts = "systemctl start nvidia-fabricmanager, of the driver's own version"
        return text, starts if is_switched else "nvidia-smi and dmesg show more"
    return None


def has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    vendors = devices.glob("*/vendor") if devices.is_dir() else ()
    return any(vendor.read_text().strip() == NVIDIA_ON_PCI for vendor in vendors)


def is_jetson(compatible: Path = Path("/proc/device-tree/compatible")) -> bool:
    """Whether this is a board whose GPU is no PCI device."""
    return compatible.exists() and b"nvidia,tegra" in compatible.read_bytes()


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
