"""`fastae doctor`: shows on one screen what this machine can do. Bug reports should contain its output.

Each check returns a text and a remedy. If the remedy is empty, all is well; otherwise training is slower or
cannot use all hardware. A Problem means that `fastae train` cannot run. Nothing is trained, downloaded or
written.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from fastae.device import compatibility
from fastae.device.choose import choose_device, choose_precision, device_name
from fastae.device.compatibility import Driver
from fastae.device.compiling import (
    NO_TEMPORARY_FOLDER,
    compiler,
    missing_to_compile,
    require_temporary_folder,
)
from fastae.device.nvml import Gpu, NvmlError, in_wsl
from fastae.errors import FastaeError
from fastae.utils.cache import KERNELS, cache_folder, entries
from fastae.utils.console import log
from fastae.utils.environment import DALI_BUILDS, __version__, commit, dali_builds, version
from fastae.utils.files import nearest_existing
from fastae.utils.limits import free_bytes, total_bytes, usable_cores

LITTLE_MEMORY, LITTLE_DISK = 4.0, 2.0  # GiB; a resident CelebA takes 10, a checkpoint 0.5
COLORS = {"problem: ": "red", "warning: ": "yellow", "": None}

Answer = tuple[str, str]
"""The text and the remedy of a check."""


class Problem(Exception):
    """Training is impossible. The arguments are a text and a remedy."""


def examine() -> int:
    """Prints the results of all checks; returns the exit code, 1 if training is impossible."""
    is_possible = True
    for subject, check in CHECKS.items():
        state, text, remedy = _run(check)
        is_possible &= state != "problem: "
        log(f"{subject:10} {state}{text}", COLORS[state])
        if remedy:
            log(f"{'':10} -> {remedy}")
    verdict = (
        "ready to train" if is_possible else "training is impossible until the problems above are solved"
    )
    log(verdict, "bold")
    return 0 if is_possible else 1


def _run(check: Callable[[], Answer]) -> tuple[str, str, str]:
    """Runs a check; returns state, text and remedy."""
    try:
        text, remedy = check()
        return "warning: " if remedy else "", text, remedy
    except Problem as problem:
        return "problem: ", *problem.args
    except (FastaeError, OSError) as error:
        return "warning: ", str(error), ""
    except Exception as error:  # the other checks still run
        return "warning: ", f"the check failed: {type(error).__name__}: {error}", "report this as a bug"


@cache
def _read_driver() -> Driver:
    """Reads the driver once for all checks, since opening NVML may initialise every GPU. Raises NvmlError."""
    return compatibility.read_driver()


def check_fastae() -> Answer:
    """Returns the version of fastae, its commit, and the system."""
    system = f"Python {platform.python_version()} on {platform.platform()}"
    return f"{__version__}, commit {commit() or 'unknown (installed)'}, {system}", ""


def check_torch() -> Answer:
    """Returns the version of PyTorch and its build."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return f"{torch.__version__}, {build}", ""


def check_driver() -> Answer:
    """Checks the driver, and whether PyTorch can use its GPUs.

    NVML may be missing although CUDA works. In WSL the driver is that of Windows.
    """
    try:
        driver = _read_driver()
    except NvmlError as error:
        if in_wsl():
            return str(error), "for an NVIDIA GPU, update the driver in Windows, not in Linux"
        if torch.cuda.is_available():
            return f"CUDA works, but {error}", "no action is needed to train without GPU figures"
        return compatibility.missing_driver(error) or ("no NVIDIA GPU: training runs on the CPU", "")
    lost = [f"{gpu.name} is lost ({gpu.lost})" for gpu in driver.gpus if gpu.lost]
    good = Counter(f"{gpu.name}, {_size(gpu)}" for gpu in driver.gpus if not gpu.lost)
    gpus = "; ".join([*(f"{count} x {name}" for name, count in good.items()), *lost])
    text = f"NVIDIA {driver.version}, up to {driver.newest_cuda}: {gpus or 'no GPU'}"
    if not driver.gpus:
        return text, "start a container with --gpus all"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return text, "unset CUDA_VISIBLE_DEVICES, which hides the GPUs, to train on one"
    if lost:
        return text, "reboot; nvidia-smi -q shows more"
    return text, ": ".join(compatibility.cuda_fault(driver) or ())


def _size(gpu: Gpu) -> str:
    return f"{gpu.memory_gib:.0f} GiB" if gpu.memory_gib else "memory shared with the CPU (below)"


def check_dali() -> Answer:
    """Checks whether DALI is installed, and fits PyTorch and the driver."""
    try:
        driver: Driver | None = _read_driver()
    except NvmlError:
        driver = None
    text = ", ".join(f"{name} {version(name)}" for name in dali_builds().values())
    if not text:
        build = DALI_BUILDS[compatibility.torch_cuda() or 13]
        raise Problem("is not installed", f"{compatibility.PIP} install {build}")
    remedy = driver.install if driver else compatibility.install_command()
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        raise Problem(f"{text} cannot be imported: {error}", remedy) from None
    if mismatch := compatibility.build_mismatch():
        return f"{text}: {mismatch}", remedy
    if driver and max(dali_builds()) > driver.cuda[0]:
        return f"{text}: driver {driver.version} is too old for it; only --device cpu works", remedy
    return text, ""


def check_amp() -> Answer:
    """Returns the precision that --amp chooses."""
    device = choose_device("auto")
    return f"on {device}: {choose_precision(device, amp=True).note}", ""


def check_compile() -> Answer:
    """Checks whether torch.compile finds its compilers and a temporary folder."""
    try:
        require_temporary_folder()
    except FastaeError:
        raise Problem(*NO_TEMPORARY_FOLDER) from None
    missing = missing_to_compile(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if missing:
        return "torch.compile cannot be used", f"install {missing}; CXX and CC select other compilers"
    kernels = os.environ.get(KERNELS) or cache_folder() / "kernels"
    return f"C++ compiler {shutil.which(compiler())}, kernels in {kernels}", ""


def check_cpu() -> Answer:
    """Checks whether PyTorch uses more threads than this process has cores."""
    cores = usable_cores()
    fitting = max(1, int(cores))
    remedy = f"set OMP_NUM_THREADS={fitting}" if fitting < torch.get_num_threads() else ""
    return f"{device_name(torch.device('cpu'))}, {cores:g} of {os.cpu_count()} cores", remedy


def check_memory() -> Answer:
    """Checks whether enough memory is free."""
    available, total = free_bytes() / 2**30, total_bytes() / 2**30
    remedy = "use --loader dali and a smaller --batch-size" if available < LITTLE_MEMORY else ""
    return f"{available:.1f} GiB free of {total:.1f} GiB", remedy


def check_disk() -> Answer:
    """Checks whether runs can be written to the current folder."""
    return _space(Path(), "set another folder for runs by --out DIR")


def check_cache() -> Answer:
    """Checks whether the cache folder is writable, and how large it is."""
    folder = cache_folder()
    text, remedy = _space(folder, "set another folder by --cache-dir DIR or $FASTAE_CACHE, or use --no-cache")
    if not os.access(folder, os.R_OK | os.X_OK):  # missing, or another user's
        return text, remedy
    return f"{text}, {sum(entry.size for entry in entries(folder)) / 2**30:.1f} GiB used", remedy


def _space(folder: Path, remedy: str) -> Answer:
    """Checks whether a folder, or the nearest existing one above it, is writable and has free space."""
    folder = folder.absolute()
    nearest = nearest_existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return f"{folder} is not writable", remedy
    free = shutil.disk_usage(nearest).free / 2**30
    return f"{folder}, {free:.1f} GiB free", remedy if free < LITTLE_DISK else ""


CHECKS = {
    "fastae": check_fastae, "torch": check_torch, "driver": check_driver,
    "dali": check_dali, "--amp": check_amp, "--compile": check_compile, "cpu": check_cpu,
    "memory": check_memory, "disk": check_disk, "cache": check_cache,
}  # fmt: skip
"""Subject -> check, in the order of the output."""
