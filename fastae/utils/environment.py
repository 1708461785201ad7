"""Finds the versions, the commit and the platform that a run or a measurement is made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastae.utils.paths import shell_word

DALI_BUILDS = {13: "nvidia-dali-cuda130", 12: "nvidia-dali-cuda120"}
"""Major version of CUDA -> DALI's package for it. Exactly one may be installed: both provide nvidia.dali."""

DISTRIBUTIONS = ("torch", *DALI_BUILDS.values(), "numpy", "tensorboard", "pillow")
"""The packages whose versions are recorded."""

CHECKOUT = Path(__file__).resolve().parents[2]
"""The checkout that this code is in, if it is not installed as a package."""


def dali_builds() -> dict[int, str]:
    """Returns the entries of DALI_BUILDS that are installed."""
    return {major: name for major, name in DALI_BUILDS.items() if version(name)}


def describe_environment() -> dict[str, Any]:
    """Returns the versions of fastae, Python and the DISTRIBUTIONS, the commit and the platform."""
    return {
        "fastae": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in DISTRIBUTIONS if version(name)},
    }


def version(distribution: str) -> str | None:
    """Returns the installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


__version__ = version("fastae") or "0+unknown"
"""The version of the installed package, which pyproject.toml states."""


def command(name: str) -> str:
    """Returns how a shell calls a program of this environment: by name if it is on the PATH, else by path."""
    own = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not own.exists() else shell_word(os.path.relpath(own))


def commit() -> str | None:
    """Returns the commit of the checkout that this code is in, with '+' if a file has been changed since.

    Returns None if the code is installed as a package, or git is not installed.
    """
    if not (CHECKOUT / ".git").exists():
        return None  # a repository in a folder above is not fastae's
    git = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
