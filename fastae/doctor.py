"""`fastae doctor`: what this machine will do, on one screen. The first thing that a bug report needs.

Each finding is ok, a warning (it trains, but slower or not on everything) or a problem (`fastae train`
cannot run); the last two come with a remedy. Nothing is trained, downloaded or written.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastae
from fastae.cache import cache_folder, entries
from fastae.console import say
from fastae.environment import commit, version
from fastae.errors import FastaeError
from fastae.hostmemory import MEMINFO, bytes_in
from fastae.monitor.gpu_reader import JPEG
from fastae.monitor.host import usable_cores
from fastae.monitor.nvml import all_gpus, close_nvml, offered, open_nvml

OK, WARNING, PROBLEM = "ok", "warning", "problem"

DALI_BUILDS = {"nvidia-dali-cuda130": (580, 0), "nvidia-dali-cuda120": (525, 60)}
"""DALI's builds, the one for the newer CUDA first, and the oldest driver that each runs with."""

NVIDIA_ON_PCI = "0x10de"
LITTLE_MEMORY = 4.0
LITTLE_DISK = 2.0
"""GiB. A resident CelebA takes 10 GB of the cache; a run's checkpoint half a GB."""


@dataclass(frozen=True)
class Finding:
    """`text`: what is there; `remedy`: what to do, where `state` is not ok."""

    subject: str
    state: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Driver:
    """What NVML says. `gpus`: (name, memory in GiB, whether there is a JPEG engine)."""

    version: str
    cuda: str
    gpus: tuple[tuple[str, float, bool], ...]

    @property
    def number(self) -> tuple[int, ...]:
        """(580, 65) of '580.65.06': NVIDIA states requirements in these two."""
        return tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())


def examine(*, as_json: bool) -> int:
    """Prints the findings; returns the exit code, 1 where training is impossible."""
    found = list(findings())
    impossible = any(finding.state == PROBLEM for finding in found)
    if as_json:
        records = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"can_train": not impossible, "findings": records}, indent=2))
    else:
        for finding in found:
            mark = "" if finding.state == OK else f"{finding.state}: "
            say(f"{finding.subject:10} {mark}{finding.text}")
            if finding.remedy:
                say(f"{'':10} -> {finding.remedy}")
        say("training is impossible here, for the problems above" if impossible else "ready to train")
    return 1 if impossible else 0


def findings() -> Iterator[Finding]:
    """Everything that is looked at, in the order in which it depends on each other."""
    driver, why_not = look_for_driver()
    yield Finding("fastae", OK, f"{fastae.__version__}, commit {commit() or 'unknown (installed)'}")
    yield of_python()
    yield of_driver(driver, why_not)
    yield of_torch(driver)
    yield of_dali(driver)
    yield from of_gpus(driver)
    for examination in (of_precision, of_compiler, of_cpu, of_memory, of_disk, of_cache):
        yield guarded(examination)


def guarded(examination: Callable[[], Finding]) -> Finding:
    """A finding even where the looking itself fails: the others are still wanted."""
    try:
        return examination()
    except Exception as error:
        subject = examination.__name__.removeprefix("of_")
        return Finding(subject, WARNING, f"not known: {type(error).__name__}: {error}", "report this")


def look_for_driver() -> tuple[Driver | None, str]:
    """What NVML tells, or None and the reason."""
    try:
        library = open_nvml()
    except FastaeError as error:
        return None, str(error)
    try:
        cuda = offered(library.nvmlSystemGetCudaDriverVersion) or 0
        return Driver(
            offered(library.nvmlSystemGetDriverVersion) or "0",
            f"{cuda // 1000}.{cuda % 1000 // 10}",
            tuple(
                (gpu.name, gpu.memory_gib or 0.0, has_jpeg_engine(library, gpu.handle))
                for gpu in all_gpus(library)
            ),
        ), ""
    finally:
        close_nvml(library)


def has_jpeg_engine(library: Any, handle: Any) -> bool:
    """Whether NVML knows how busy one is: where there is one, and the driver is not older than the call."""
    return offered(library.nvmlDeviceGetJpgUtilization, handle) is not None


def of_python() -> Finding:
    text = f"{platform.python_version()} on {platform.platform()}"
    if platform.system() != "Linux":
        return Finding("python", PROBLEM, text, "DALI needs Linux on x86-64 or aarch64")
    return Finding("python", OK, text)


def of_driver(driver: Driver | None, why_not: str) -> Finding:
    if driver:
        return Finding("driver", OK, f"NVIDIA {driver.version}, up to CUDA {driver.cuda}")
    if nvidia_on_pci():
        return Finding(
            "driver",
            WARNING,
            f"there is an NVIDIA device, but {why_not}",
            "install NVIDIA's driver; in a container, start it with the GPU passed in (--gpus all)",
        )
    return Finding("driver", OK, f"{why_not}, and no NVIDIA device on PCI: training runs on the CPU")


def nvidia_on_pci(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    vendors = devices.glob("*/vendor") if devices.is_dir() else ()
    return any(vendor.read_text().strip() == NVIDIA_ON_PCI for vendor in vendors)


def of_torch(driver: Driver | None) -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", PROBLEM, f"cannot be imported: {error}", "make setup")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    text = f"{torch.__version__}, {build}"
    if driver and not torch.version.cuda:
        return Finding("torch", WARNING, f"{text}: it cannot use the GPU", "install a CUDA build of PyTorch")
    if driver and not torch.cuda.is_available():
        return Finding(
            "torch",
            WARNING,
            f"{text}: it does not find the GPU",
            f"see CUDA_VISIBLE_DEVICES; the driver allows CUDA {driver.cuda} at most",
        )
    return Finding("torch", OK, text)


def of_dali(driver: Driver | None) -> Finding:
    installed = {build: number for build in DALI_BUILDS if (number := version(build))}
    newest = next((build for build, oldest in DALI_BUILDS.items() if suits(driver, oldest)), None)
    if not installed:
        name = newest or "nvidia-dali-cuda120"
        return Finding("dali", PROBLEM, "is not installed", f"pip install {name}")
    text = ", ".join(f"{build} {number}" for build, number in installed.items())
    if len(installed) > 1:
        remedy = f"uninstall both, then install {newest} alone: they provide the same module"
        return Finding("dali", WARNING, f"two builds: {text}", remedy)
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        return Finding("dali", PROBLEM, f"{text} cannot be imported: {error}", "make setup")
    (build,) = installed
    if driver is None:
        return Finding("dali", OK, f"{text}, on the CPU")
    if not suits(driver, DALI_BUILDS[build]):
        needed = ".".join(str(part) for part in DALI_BUILDS[build])
        remedy = f"install {newest} instead" if newest else "install a newer driver"
        return Finding(
            "dali",
            WARNING,
            f"{text} needs driver {needed} or newer, not {driver.version}: --device cpu alone will work",
            remedy,
        )
    return Finding("dali", OK, f"{text}, which suits the driver")


def suits(driver: Driver | None, oldest: tuple[int, int]) -> bool:
    """Any build will do where there is no driver at all."""
    return driver is None or driver.number >= oldest


def of_gpus(driver: Driver | None) -> Iterator[Finding]:
    if driver is None:
        return
    if not driver.gpus:
        yield Finding("gpu", WARNING, "the driver shows none", "in a container, pass it in (--gpus all)")
    for name, memory, jpeg_engine in driver.gpus:
        engine = (
            f"with a {JPEG.label}" if jpeg_engine else f"no {JPEG.label}: JPEGs are decoded by CUDA cores"
        )
        yield Finding("gpu", OK, f"{name}, {memory:.0f} GiB, {engine}")


def of_precision() -> Finding:
    from fastae.device import choose_device, choose_precision

    device = choose_device("auto")
    precision = choose_precision(device, amp=True)
    return Finding("--amp", OK, f"on {device}: {precision.note}")


def of_compiler() -> Finding:
    import torch

    from fastae.device import can_compile, compiler

    if not can_compile():
        remedy = "install g++, or name another compiler in CXX"
        return Finding("--compile", WARNING, f"no C++ compiler {compiler()!r} on the PATH", remedy)
    if torch.cuda.is_available() and not importlib.util.find_spec("triton"):
        return Finding("--compile", WARNING, "Triton is missing, which the GPU needs", "pip install triton")
    return Finding("--compile", OK, f"C++ compiler {shutil.which(compiler())}")


def of_cpu() -> Finding:
    import torch

    capabilities = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    features = [name for name in wanted if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.machine()
    cores, threads = usable_cores(), torch.get_num_threads()
    text = f"{name}, {cores} of {os.cpu_count()} cores, {threads} PyTorch threads, {' '.join(features)}"
    allowed = quota()
    if allowed is not None and allowed < threads:
        return Finding(
            "cpu",
            WARNING,
            f"{text}; this container may use {allowed:g} of them",
            f"OMP_NUM_THREADS={max(1, int(allowed))} and --threads {max(1, int(allowed))}",
        )
    return Finding("cpu", OK, text)


def quota(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the control group allows, by "QUOTA PERIOD"; None where it sets no limit."""
    try:
        allowed, period = limits.read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return None


def of_memory() -> Finding:
    available, total = (bytes_in(MEMINFO, name) / 2**30 for name in ("MemAvailable", "MemTotal"))
    text = f"{available:.1f} GiB free of {total:.1f} GiB"
    if available < LITTLE_MEMORY:
        return Finding("memory", WARNING, text, "--loader dali, and a smaller --batch-size")
    return Finding("memory", OK, text)


def of_disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    text = f"{free:.1f} GiB free here, where runs/ will lie"
    if free < LITTLE_DISK:
        return Finding("disk", WARNING, text, "free some, or --out on another disk")
    if not os.access(".", os.W_OK):
        return Finding("disk", WARNING, f"{text}, but not writable", "--out DIR names another place")
    return Finding("disk", OK, text)


def of_cache() -> Finding:
    folder = cache_folder()
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        remedy = "--cache-dir DIR or $FASTAE_CACHE names another place"
        return Finding("cache", WARNING, f"{folder} cannot be written to", remedy)
    size = sum(entry.size for entry in entries(folder)) / 2**30
    free = shutil.disk_usage(place).free / 2**30
    text = f"{folder}, {size:.1f} GiB used, {free:.1f} GiB free"
    if free < LITTLE_DISK:
        return Finding("cache", WARNING, text, "--no-cache, or --cache-dir on another disk")
    return Finding("cache", OK, text)
