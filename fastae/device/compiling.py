"""Finds out whether torch.compile can be used here, and whether it saves time."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

import torch

from fastae.errors import FastaeError, SettingError

CPU_COMPILE_FROM_IMAGES = 20_000
CPU_COMPILE_FROM_MINUTES = 8
"""The shortest run that is compiled on a CPU, by its images and by its minutes.

Compiling takes about 25 s and saves 5-10 % of each step (2 cores, AVX512-BF16, some 40 images/s). Compiling
a shorter run would make it end later.
"""

RECOMPILE_LIMIT = 256
"""How often a process may compile one function, which it does for each model, element, loader and shape.

PyTorch's default of 8 would end a search over models, and further loaders would not be compiled.
"""

CPU = torch.device("cpu")

NO_TEMPORARY_FOLDER = "no temporary folder is writable", "set TMPDIR to a folder of your own"
"""A fault and its remedy."""


def choose_compile(
    wanted: bool | None, device: torch.device, images: int, minutes: float | None = None
) -> tuple[bool, str]:
    """Returns whether to compile a run, and this choice in words.

    Args:
        wanted: whether the user wants torch.compile; None to use it if it saves time.
        device: the device that the run computes on.
        images: how many images the run trains on.
        minutes: how long the run lasts at most; None if that is not limited.

    Raises:
        SettingError: the user wants torch.compile, and something that it needs is missing.
    """
    missing = missing_to_compile(device)
    if wanted and missing:
        raise SettingError("compile", f"needs {missing}: install that, or use --no-compile")
    if wanted is None and missing:
        return False, f"torch.compile off: it needs {missing}"
    is_short = images < CPU_COMPILE_FROM_IMAGES or (minutes or math.inf) < CPU_COMPILE_FROM_MINUTES
    if wanted is None and device.type == "cpu" and is_short:
        return False, "torch.compile off: run too short to amortise compilation"
    return wanted is not False, "compiled" if wanted is not False else "not compiled"


def can_compile(device: torch.device = CPU) -> bool:
    """Returns whether everything that torch.compile needs for this device is installed."""
    return not missing_to_compile(device)


def missing_to_compile(device: torch.device) -> str:
    """Returns, in words, what torch.compile needs and is not installed; "" if nothing is missing.

    It needs a C++ compiler. For a GPU it also needs Triton, which compiles C code that includes Python.h.
    """
    missing = [] if shutil.which(compiler()) else [f"the C++ compiler {compiler()!r}"]
    if device.type == "cuda":
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        if not any(map(shutil.which, names)):
            missing.append(f"the C compiler {' or '.join(map(repr, names))}")
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            missing.append("Python.h (package python3-dev)")
        if not importlib.util.find_spec("triton"):
            missing.append("the Python package triton")
    return ", ".join(missing)


def allow_recompiling() -> None:
    """Lets the process compile each function RECOMPILE_LIMIT times."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)


def compiler() -> str:
    """Returns the command of the C++ compiler that torch.compile calls."""
    return os.environ.get("CXX") or "g++"


def require_temporary_folder() -> None:
    """Raises FastaeError if no temporary folder is writable and PyTorch's compiler needs one.

    The compiler keeps its kernels there, unless TORCHINDUCTOR_CACHE_DIR names another folder. Even runs that
    do not compile import it.
    """
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            raise FastaeError(": ".join(NO_TEMPORARY_FOLDER)) from None
