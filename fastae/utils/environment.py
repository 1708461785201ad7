"""The versions, commit and platform that a run or a measurement was made with, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DALI_BUILDS = {13: "nvidia-dali-cuda130", 12: "nvidia-dali-cuda120"}
"""CUDA's major version -> package. Both provide the module nvidia.dali: exactly one may be installed."""

DISTRIBUTIONS = ("torch", *DALI_BUILDS.values(), "numpy", "tensorboard", "pillow")


def dali_builds() -> dict[int, str]:
    """The entries of DALI_BUILDS that are installed."""
    return {major: name for major, name in DALI_BUILDS.items() if version(name)}


def describe_environment() -> dict[str, Any]:
    """fastae's version and commit, Python, the packages that matter, and the platform, as JSON values."""
    return {
        "fastae": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in DISTRIBUTIONS if version(name)},
    }


def version(distribution: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_nvml() -> bool:
    """Whether the driver's management library (NVML) is installed and can be initialised."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


__version__ = version("fastae") or "0+unknown"
"""The version of the installed package, which pyproject.toml states."""


def command(name: str) -> str:
    """How a shell calls a program of this environment: by name if it is on the PATH, else by path."""
    own = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not own.exists() else os.path.relpath(own)


def commit() -> str | None:
    """The commit of the checkout that this code runs from, with '+' if it was changed since."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None  # installed as a package: a repository in a parent folder is not fastae's
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
