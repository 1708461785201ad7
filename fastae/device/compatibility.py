"""Checks that driver, GPUs, PyTorch and DALI fit together: each supports certain versions of CUDA.

`make setup` calls `python -m fastae.device.compatibility`, which fails if PyTorch and DALI are built for
different versions.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from fastae.device.nvml import Gpu, NvmlError, all_gpus, error_name, offered, open_nvml
from fastae.utils.console import first_line, printable
from fastae.utils.environment import CHECKOUT, DALI_BUILDS, dali_builds

CUDA_13_FROM = (7, 5)
"""The lowest compute capability that builds for CUDA 13 have code for. Volta and older GPUs are below it."""

BLACKWELL = (10, 0)
"""The lowest compute capability that PyTorch's builds for CUDA 12.6 have no code for."""

CUDA_13_DRIVER = 580
"""The first branch of drivers for CUDA 13, and the last branch for Volta and older GPUs."""

CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"
"""The index of PyTorch's builds for CUDA 12.6, up to PyTorch 2.14. PyPI has the builds for CUDA 13."""

PIP = f"{shlex.quote(sys.executable)} -m pip"
"""The command that calls the pip of the environment that fastae runs in."""

INSTALL_DRIVER = "install NVIDIA's driver; in a container, on the host, and start it with --gpus all"
CONTAINER = "start the container with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
START_SWITCHES = "systemctl start nvidia-fabricmanager (it must have the version of the driver)"
LOADED_DRIVER = Path("/proc/driver/nvidia/version")
"""A file that exists if a driver is loaded. In a container this is the host's driver."""

REMEDIES = {
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "reboot: the driver was updated, and the old one is still loaded",
    "NVML_ERROR_DRIVER_NOT_LOADED": "sudo modprobe nvidia; if that fails, dkms status shows whether the "
    "module was built for this kernel, and mokutil --sb-state whether Secure Boot keeps it out",
}
"""NVML's name of an error -> what the user can do."""

NVIDIA_ON_PCI = "0x10de"
"""NVIDIA's vendor ID on the PCI bus."""

Fault = tuple[str, str]
"""What is wrong, and the remedy."""


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs, as NVML reports them."""

    version: str

    cuda: tuple[int, int]
    """The newest version of CUDA that the driver supports, (major, minor)."""

    gpus: tuple[Gpu, ...] = ()

    @property
    def newest_cuda(self) -> str:
        """The newest version of CUDA that the driver supports, in words."""
        return "CUDA {}.{}".format(*self.cuda)

    @property
    def install(self) -> str:
        """The command that installs PyTorch and DALI for this driver, or the driver to install instead."""
        known = [gpu.capability for gpu in self.gpus if gpu.capability]
        is_old, is_new = any(each < CUDA_13_FROM for each in known), any(each >= BLACKWELL for each in known)
        if self.cuda >= (13, 0) and (is_new or not is_old):
            return install_command(13)
        if self.cuda >= (12, 0) and not is_new:
            return install_command(12)
        return f"install NVIDIA's driver {CUDA_13_DRIVER}{'' if is_old else ' or newer'}"


def install_command(major: int = 13) -> str:
    """Returns the command that installs PyTorch and DALI for this major version of CUDA, in place of others.

    The .venv that `make setup` made is made anew: the Makefile chooses the builds, in their tested versions.
    """
    if Path(sys.prefix).resolve() == CHECKOUT / ".venv":
        return f"cd {shlex.quote(str(CHECKOUT))}; make clean; make setup"
    index = f"--index-url {CUDA_12_INDEX} " if major == 12 else ""
    dali = f"{PIP} install {DALI_BUILDS[major]}"
    return f"{PIP} uninstall -y torch {' '.join(DALI_BUILDS.values())}; {PIP} install {index}torch; {dali}"


def read_driver(library: Any = pynvml) -> Driver:
    """Reads the driver's version and its GPUs from NVML. Raises NvmlError if NVML cannot be used."""
    open_nvml(library)
    try:
        cuda = library.nvmlSystemGetCudaDriverVersion()
        return Driver(
            library.nvmlSystemGetDriverVersion(),
            cuda=(cuda // 1000, cuda % 1000 // 10),
            gpus=tuple(gpu for gpu, _ in all_gpus(library)),
        )
    except pynvml.NVMLError as error:
        raise NvmlError(error_name(error)) from None
    finally:
        offered(library.nvmlShutdown)


def torch_cuda() -> int | None:
    """Returns the major version of CUDA that PyTorch is built for; None for a CPU build."""
    import torch

    return int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None


def torch_mismatch(driver: Driver) -> str:
    """Returns why PyTorch cannot use the driver's GPUs; "" if it can."""
    import torch

    major = torch_cuda()
    if major is None:
        return "PyTorch is a CPU build"
    if major > driver.cuda[0]:
        newest = driver.newest_cuda
        return f"PyTorch needs CUDA {torch.version.cuda}, driver {driver.version} supports {newest} at most"
    built = torch.cuda.get_arch_list()
    if built and driver.gpus and not any(_has_code_for(built, gpu.capability) for gpu in driver.gpus):
        found = ", ".join("{}.{}".format(*gpu.capability) for gpu in driver.gpus if gpu.capability)
        return f"PyTorch has no code for compute capability {found}, only for {' '.join(built)}"
    return ""


def build_mismatch() -> str:
    """Returns why the installed builds of PyTorch and DALI do not fit together; "" if they do."""
    ours, theirs = torch_cuda(), list(dali_builds())
    if len(theirs) > 1:
        return "two builds of DALI are installed, which provide the same module"
    if ours and theirs and theirs != [ours]:
        return f"PyTorch is built for CUDA {ours}, DALI for CUDA {theirs[0]}"
    return ""


def unusable_gpu_reason() -> str | None:
    """Returns why PyTorch cannot use this machine's NVIDIA GPU, and the remedy, in one line.

    Returns None if PyTorch can use it, if there is no GPU, or if CUDA_VISIBLE_DEVICES hides it.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        driver = read_driver()
        fault = cuda_fault(driver) if driver.gpus else None
    except NvmlError as error:
        fault = None if torch.cuda.is_available() else missing_driver(error)
    return ": ".join(fault) if fault else None


def missing_driver(error: NvmlError) -> Fault | None:
    """Returns what is wrong with the driver; None if there is no NVIDIA GPU.

    Args:
        error: the reason why NVML cannot be used. The caller has checked that CUDA does not work either.
    """
    if error.is_installed:
        remedy = REMEDIES.get(error.code, "nvidia-smi shows more")
        return f"the NVIDIA driver does not answer ({error.code})", remedy
    if not has_nvidia_card():
        return None
    if LOADED_DRIVER.exists():
        return "the NVIDIA driver is loaded, but its libraries are missing here", CONTAINER
    return "there is an NVIDIA GPU, but no driver", INSTALL_DRIVER


def cuda_fault(driver: Driver) -> Fault | None:
    """Returns why PyTorch cannot use the driver's GPUs, in one line; None if it can."""
    import torch

    if mismatch := torch_mismatch(driver):
        return mismatch, driver.install
    if not (text := cuda_error()):
        return None
    # cudaErrorSystemNotReady (802): the switches between the GPUs of an HGX board are not set up. Only the
    # text has the number: PyTorch raises a plain RuntimeError if it cannot count the devices.
    if "Error 802" in text:
        return text, START_SWITCHES
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and not torch.cuda.is_available():
        return text, f"unset CUDA_VISIBLE_DEVICES={printable(visible)} if that names no GPU here"
    return text, "nvidia-smi and dmesg show more"


def cuda_error() -> str:
    """Returns the first line of PyTorch's error if the current GPU runs no kernel; "" if it runs one.

    PyTorch may find a GPU that another process has for itself.
    """
    import torch

    try:
        torch.ones(1, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as error:  # the latter from a CPU build
        return first_line(error)
    return ""


def has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Returns whether a device on the PCI bus is NVIDIA's."""
    return any(vendor.read_text().strip() == NVIDIA_ON_PCI for vendor in devices.glob("*/vendor"))


def _has_code_for(built: Sequence[str], capability: tuple[int, int] | None) -> bool:
    """Returns whether a GPU of this compute capability runs one of the built architectures.

    It runs code for its own major version and no later minor version (sm_XY), and PTX for any version up to
    its own (compute_XY). An unknown capability counts as supported.
    """
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
        sys.exit(f"{mismatch}: {install_command()}")
