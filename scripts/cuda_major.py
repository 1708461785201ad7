"""Prints 12 or 13: for which CUDA the builds of PyTorch and DALI must be made that fit this machine.

Those for CUDA 13 need driver 580 and compute capability 7.5, those for CUDA 12.6 have no code from 10.0 on.
Without a GPU it is 13. `make setup` calls this before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys

CUDA_13_DRIVER = 580
CUDA_13_CAPABILITY = (7, 5)
CUDA_12_END = (10, 0)


def ask(field: str) -> list[tuple[int, int]]:
    """Returns (major, minor) of a field of nvidia-smi for each GPU, none if no driver knows it."""
    command = ["nvidia-smi", "--format=csv,noheader", f"--query-gpu={field}"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d+)", printed, re.M)]


def main() -> None:
    driver = max(ask("driver_version"), default=(CUDA_13_DRIVER, 0))[0]
    capabilities = ask("compute_cap")
    needs_13 = any(capability >= CUDA_12_END for capability in capabilities)
    needs_12 = any(capability < CUDA_13_CAPABILITY for capability in capabilities)
    if driver >= CUDA_13_DRIVER and (needs_13 or not needs_12):
        print(13)
    elif needs_13:
        sys.exit(f"this GPU needs driver {CUDA_13_DRIVER} or newer, not {driver}")
    else:
        print(12)


if __name__ == "__main__":
    main()
