"""Figures with their spread, and variants that each run in a process of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPEATS = 5
CHECKOUT = Path(__file__).parents[1]
"""Left out of logs, which are read elsewhere."""


@dataclass(frozen=True)
class Figure:
    """A measured quantity over several repeats; values in `unit`."""

    unit: str
    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(values: Sequence[float], unit: str) -> Figure:
        return Figure(unit, statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.low:,.4g}-{self.high:,.4g}) {self.unit}"


def rates(work: Callable[[], int], repeats: int = REPEATS) -> Figure:
    """Items a second of `work`, which returns how many it did; call it once before, to warm up."""
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        items = work()
        measured.append(items / (time.perf_counter() - started))
    return Figure.of(measured, "images/s")


def isolated(
    module: str, arguments: Sequence[str], log: Callable[[str], None], **environment: str
) -> dict[str, Any]:
    """What `python -m MODULE ARGUMENTS` prints as its last line, as JSON.

    Everything else that it prints goes to `log`. A variant that fails comes back as {"absent": why}:
    one that cannot run here must not end the others.
    """
    command = [sys.executable, "-m", module, *arguments]
    log(f"$ python -m {module} {' '.join(arguments)}")
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        check=False,
    )
    log((result.stdout + result.stderr).replace(f"{CHECKOUT}/", ""))
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        reason = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return {"absent": f"failed: {reason[:200]}"}
    return json.loads(lines[-1])
